"""The same stack on a CPU, for tests and trials: vLLM's own spec moves KV on GPUs only."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import torch
from typing_extensions import override
from vllm.v1.kv_offload.base import GPULoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm.v1.kv_offload.base import CanonicalKVCaches, LoadStoreSpec


class CpuTieringSpec(TieringOffloadingSpec):
    """vLLM's tiering spec, with a worker that copies from memory to memory."""

    @override
    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        region = SharedOffloadRegion(
            engine_id=self.config.engine_id,
            num_chunks=self.num_chunks,
            rank=self.config.parallel.rank,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        return CpuWorker(kv_caches, region, blocks_per_chunk=self.blocks_per_chunk)


class CpuWorker(OffloadingWorker):
    """Copies between the KV cache and the region that it shares with the scheduler, in one thread, in order."""

    def __init__(self, kv_caches: CanonicalKVCaches, region: SharedOffloadRegion, *, blocks_per_chunk: int) -> None:
        self._region = region
        self._per_chunk = blocks_per_chunk
        self._blocks = [cache.tensor.view(torch.int8) for cache in kv_caches.tensors]
        self._rows = [
            region.create_next_worker_view(cache.page_size_bytes * blocks_per_chunk).view(
                region.num_chunks, blocks_per_chunk, cache.page_size_bytes
            )
            for cache in kv_caches.tensors
        ]
        self._copier = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nightfill-copy")
        self._jobs: dict[int, Future[TransferResult]] = {}

    @override
    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        assert isinstance(dst_spec, CPULoadStoreSpec)
        pairs = list(self._pairs(src_spec, dst_spec))
        self._jobs[job_id] = self._copier.submit(self._copy, job_id, pairs, storing=True)
        return True

    @override
    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        assert isinstance(src_spec, CPULoadStoreSpec)
        pairs = list(self._pairs(dst_spec, src_spec))
        self._jobs[job_id] = self._copier.submit(self._copy, job_id, pairs, storing=False)
        return True

    @override
    def get_finished(self) -> list[TransferResult]:
        done = [job_id for job_id, future in self._jobs.items() if future.done()]
        return [self._jobs.pop(job_id).result() for job_id in done]

    @override
    def wait(self, job_ids: set[int]) -> None:
        wait([self._jobs[job_id] for job_id in job_ids if job_id in self._jobs])

    @override
    def shutdown(self) -> None:
        self._copier.shutdown(wait=True)
        self._rows.clear()
        self._region.cleanup()

    def _pairs(self, blocks: GPULoadStoreSpec, chunks: CPULoadStoreSpec) -> Iterator[tuple[int, int, int]]:
        """(block, chunk, place in the chunk) of each block to move; the first chunk may be entered midway."""
        skipped = blocks.block_indices[0] % self._per_chunk
        for n, block in enumerate(blocks.block_ids.tolist(), start=skipped):
            yield block, int(chunks.chunk_ids[n // self._per_chunk]), n % self._per_chunk

    def _copy(self, job_id: int, pairs: list[tuple[int, int, int]], *, storing: bool) -> TransferResult:
        began_s = time.monotonic()
        moved = 0
        for blocks, rows in zip(self._blocks, self._rows, strict=True):
            for block, chunk, place in pairs:
                inside, outside = blocks[block], rows[chunk, place]
                if storing:
                    outside.copy_(inside)
                else:
                    inside.copy_(outside)
                moved += outside.numel()
        return TransferResult(job_id, True, moved, time.monotonic() - began_s)
