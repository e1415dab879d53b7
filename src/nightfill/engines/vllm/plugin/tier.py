"""nightfill's store as a secondary tier below vLLM's host memory.

vLLM's tiering manager moves KV between device and host, and hands whole chunks of host memory to this class: to store
them (`submit_store`), or to fill them (`submit_load`). It calls from the scheduler's thread, which must never wait;
everything slow happens in threads of ours.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from typing_extensions import override
from vllm.v1.kv_offload.base import LookupResult, Medium, OffloadPolicy, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from nightfill.engines.vllm.lookups import Lookups
from nightfill.engines.vllm.plugin.checks import read_settings
from nightfill.engines.vllm.plugin.metrics import StoreStats, definitions
from nightfill.errors import BadSetting, KvError
from nightfill.kv import BlockMeta, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata, OffloadingSpec, OffloadKey, ReqContext
    from vllm.v1.kv_offload.tiering.base import TransferJob

    from nightfill.config import KvSettings
    from nightfill.contexts.context import Signature
    from nightfill.engines.vllm.asked import Asked
    from nightfill.kv import BlockKey, StoreReport

_log: Final = logging.getLogger(__name__)

_STATS_EVERY_S: Final = 1.0
_DRAIN_S: Final = 60.0


class NightfillTier(SecondaryTierManager):
    """A `SecondaryTierManager` over `nightfill.kv.Store`. One per server."""

    medium = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **unknown: object,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        if unknown:
            raise ValueError(f"{tier_type}: unknown settings {', '.join(sorted(unknown))}; they go under 'nightfill'")
        config = offloading_spec.config
        self.settings = read_settings(dict(config.extra_config), lambda path: Path(path).expanduser().read_bytes())
        self.data_dir = Path(self.settings.data_dir or "~/.local/share/nightfill").expanduser().absolute()
        self.block_tokens = config.groups[0].tokens_per_block * config.cache.blocks_per_chunk
        self.block_bytes = config.worker_kv_bytes_per_block * config.cache.blocks_per_chunk * config.parallel.world_size
        self.kv_dtype = config.model.dtype
        self.kv_shape = (config.parallel.world_size, config.cache.blocks_per_chunk, config.worker_kv_bytes_per_block)
        """Of a stored block: ranks, blocks of the engine's, bytes of each."""
        self.store = open_store(_below_host_memory(self.settings.kv), data_dir=self.data_dir)
        self.lookups = Lookups(
            self.store.leading,
            block_tokens=self.block_tokens,
            block_bytes=self.block_bytes,
            always=self.settings.kv.restore == "always",
        )
        self._rows = primary_kv_view.cast("B")
        self._stride = primary_kv_view.strides[0] if primary_kv_view.strides else 0
        self._asked: dict[str, Asked] = {}
        self._loads: dict[int, Asked] = {}
        self._done: queue.SimpleQueue[JobResult] = queue.SimpleQueue()
        self._running: set[Future[JobResult]] = set()
        self._lock = threading.Lock()
        self._stats = StoreStats()
        self._counting: Future[StoreReport] | None = None
        self._counted_s = 0.0
        self._counter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nightfill-count")
        self._loaders = ThreadPoolExecutor(max_workers=2, thread_name_prefix="nightfill-load")
        self._storers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nightfill-store")

    # --- requests ---

    def note(self, asked: Asked) -> None:
        """A request that vLLM is about to see; its look-up begins."""
        self._asked[asked.request_id] = asked
        if asked.spans and not asked.wish.cold:
            self.lookups.begin(asked)

    def asked(self, request_id: str) -> Asked | None:
        """What is known of a request that vLLM still has."""
        return self._asked.get(request_id)

    @override
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        asked = self._asked.get(req_context.req_id)
        # What the engine holds already is stored too, for somebody asked for it and it is not there.
        missing = asked is not None and asked.stores and (asked.found is None or asked.found < len(asked.spans))
        return RequestOffloadingContext(policy=OffloadPolicy.REQUEST_LEVEL if missing else OffloadPolicy.CHUNK_LEVEL)

    @override
    def on_request_finished(self, req_context: ReqContext) -> None:
        self._asked.pop(req_context.req_id, None)

    @override
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        asked = self._asked.get(req_context.req_id)
        if asked is None or not asked.spans:
            return LookupResult.MISS
        began_s = time.monotonic()
        self.lookups.settle(asked)
        asked.lookup_s += time.monotonic() - began_s
        if asked.found is None:
            return LookupResult.RETRY
        place = self._place(key, req_context)
        hit = place is not None and place < asked.usable and place not in asked.failed
        return LookupResult.HIT if hit else LookupResult.MISS

    def _place(self, key: OffloadKey, req_context: ReqContext) -> int | None:
        """Which of the prompt's blocks a chunk is."""
        end = req_context.get_offload_key_position(key)
        return None if end is None else end // self.block_tokens - 1

    # --- metrics ---

    @classmethod
    @override
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        return definitions()

    @override
    def get_stats(self) -> OffloadingConnectorStats | None:
        # Asked after every step; a tier may be across a network.
        now_s = time.monotonic()
        if self._counting is None:
            if now_s - self._counted_s >= _STATS_EVERY_S:
                self._counted_s = now_s
                self._counting = self._counter.submit(self.store.report)
            return None
        if not self._counting.done():
            return None
        counting, self._counting = self._counting, None
        return self._stats.since(counting.result())

    # --- transfers ---

    @override
    def submit_store(self, job_metadata: TransferJob) -> None:
        asked = self._asked.get(job_metadata.req_context.req_id)
        todo: list[tuple[BlockKey, int, int]] = []
        if asked is not None and asked.stores:
            for key, chunk in zip(job_metadata.keys, job_metadata.chunk_ids, strict=True):
                place = self._place(key, job_metadata.req_context)
                if place is not None and place < len(asked.spans):
                    todo.append((asked.spans[place].key, place, int(chunk)))
        if asked is None or not todo:
            self._done.put(JobResult(job_metadata.job_id, success=True, transfer_time=0.0, transfer_bytes=0))
            return
        self._submit(self._storers, self._store, job_metadata.job_id, todo, asked)

    @override
    def submit_load(self, job_metadata: TransferJob) -> None:
        asked = self._asked.get(job_metadata.req_context.req_id)
        places = [self._place(key, job_metadata.req_context) for key in job_metadata.keys]
        if asked is None or any(place is None or place >= len(asked.spans) for place in places):
            self._done.put(JobResult(job_metadata.job_id, success=False))
            return
        todo = [
            (key, asked.spans[place].key, place, int(chunk))
            for key, place, chunk in zip(job_metadata.keys, places, job_metadata.chunk_ids, strict=True)
            if place is not None
        ]
        asked.loading += 1
        self._loads[job_metadata.job_id] = asked
        self._submit(self._loaders, self._load, job_metadata.job_id, todo, asked)

    @override
    def get_finished_jobs(self) -> Iterable[JobResult]:
        finished: list[JobResult] = []
        while True:
            try:
                result = self._done.get_nowait()
            except queue.Empty:
                return finished
            asked = self._loads.pop(result.job_id, None)
            if asked is not None:
                asked.loading -= 1
            finished.append(result)

    @override
    def drain_jobs(self) -> None:
        with self._lock:
            running = set(self._running)
        wait(running)

    @override
    def shutdown(self) -> None:
        with self._lock:
            running = set(self._running)
        wait(running, timeout=_DRAIN_S)
        self.lookups.close()
        for pool in (self._counter, self._loaders, self._storers):
            pool.shutdown(wait=True, cancel_futures=True)
        self._rows.release()
        self.store.close()

    def _submit(self, pool: ThreadPoolExecutor, work: Callable[..., JobResult], job_id: int, *rest: Any) -> None:
        future = pool.submit(_timed, work, job_id, *rest)
        with self._lock:
            self._running.add(future)
        future.add_done_callback(lambda done: self._ended(done, job_id))

    def _ended(self, future: Future[JobResult], job_id: int) -> None:
        """Whatever became of a job, vLLM must hear of it: its memory stays pinned else."""
        failure = None if future.cancelled() else future.exception()
        if failure is not None:
            _log.error("job %d failed", job_id, exc_info=failure)
        failed = failure is not None or future.cancelled()
        self._done.put(JobResult(job_id, success=False) if failed else future.result())
        with self._lock:
            self._running.discard(future)

    def _row(self, chunk: int) -> memoryview:
        return self._rows[chunk * self._stride : chunk * self._stride + self.block_bytes]

    def _store(self, job_id: int, todo: list[tuple[BlockKey, int, int]], asked: Asked) -> JobResult:
        moved = 0
        there = self.store.has_many([key for key, _, _ in todo])
        for (key, place, chunk), stored in zip(todo, there, strict=True):
            if stored:
                continue
            meta = BlockMeta(
                kind="block",
                signature=asked.signature,
                start=place * self.block_tokens,
                stop=(place + 1) * self.block_tokens,
                dtype=self.kv_dtype,
                shape=self.kv_shape,
            )
            try:
                self.store.put(key, [self._row(chunk)], meta, salt=asked.salt)
            except KvError as error:
                _log.warning("a block was not stored: %s", error)
                return JobResult(job_id, success=False, transfer_bytes=moved)
            moved += self.block_bytes
        return JobResult(job_id, success=True, transfer_bytes=moved)

    def _load(self, job_id: int, todo: list[tuple[OffloadKey, BlockKey, int, int]], asked: Asked) -> JobResult:
        began_s = time.monotonic()
        rows = [self._row(chunk) for _, _, _, chunk in todo]
        metas = self.store.get_many_into([block_key for _, block_key, _, _ in todo], rows, salt=asked.salt)
        loaded: list[OffloadKey] = []
        for (key, _, place, _), meta in zip(todo, metas, strict=True):
            if meta is not None and self._fits(meta, place, asked.signature):
                loaded.append(key)
            else:
                asked.failed.add(place)
        moved = len(loaded) * self.block_bytes
        self.lookups.observe(load_bytes=moved, load_s=time.monotonic() - began_s)
        return JobResult(job_id, success=len(loaded) == len(todo), successful_keys=loaded, transfer_bytes=moved)

    def _fits(self, meta: BlockMeta, place: int, signature: Signature) -> bool:
        start = place * self.block_tokens
        return (meta.signature, meta.start, meta.stop) == (signature, start, start + self.block_tokens)


def _below_host_memory(kv: KvSettings) -> KvSettings:
    """Without tiers in this process's own memory: vLLM's host memory, right above, is one already."""
    tiers = tuple(tier for tier in kv.tiers if tier.kind != "ram" or tier.shared)
    if not any(tier.kind != "ram" for tier in tiers):
        raise BadSetting("kv.tiers: a vLLM server needs one of kind disk, redis or s3", param="kv.tiers")
    return msgspec.structs.replace(kv, tiers=tiers)


def _timed(work: Callable[..., JobResult], job_id: int, *rest: Any) -> JobResult:
    began_s = time.monotonic()
    result = work(job_id, *rest)
    result.transfer_time = time.monotonic() - began_s
    return result
