"""vLLM servers over nightfill's store: flags as `nightfill vllm-args` prints them, and looks at the store."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.config import ByteSize, EngineSettings, KvSettings, Settings, TierSettings
from nightfill.contexts.context import Signature
from nightfill.engines.vllm.args import KvDtype, Wanted, launch
from nightfill.engines.vllm.wire import NAME, PARAMS, Report, Wish
from nightfill.kv import BlockMeta, open_store, spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nightfill.kv import BlockKey
    from vllm_server import Completion, VllmServer

BLOCK: Final = 256
SALT: Final = "ab" * 32
"""A salt as gateway and worker send it; the salt of no other test's requests."""


def disk(path: Path, **more: Any) -> TierSettings:
    """A disk tier for tests."""
    return TierSettings(
        kind="disk", path=str(path), max_bytes=ByteSize(4 << 30), **{"min_free_bytes": ByteSize(0), **more}
    )


def kv_of(*tiers: TierSettings, **more: Any) -> KvSettings:
    """Settings of a store over `tiers`."""
    return KvSettings(tiers=tiers, **{"restore": "always", **more})


def flags_for(
    kv: KvSettings,
    *,
    data_dir: Path,
    host_bytes: int = 128 << 20,
    kv_cache_dtype: KvDtype = "auto",
    tensor_parallel_size: int = 1,
    kv_cache_bytes: int = 128 << 20,
) -> list[str]:
    """What `nightfill vllm-args` says on top of the address and the model."""
    wanted = Wanted(
        data_dir=data_dir,
        model="-",
        cpu=True,
        host_bytes=host_bytes,
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel_size=tensor_parallel_size,
        kv_cache_bytes=kv_cache_bytes,
    )
    engine = EngineSettings(name="v", kind="vllm", url="http://127.0.0.1:1")
    argv = launch(Settings(kv=kv, engines=(engine,)), engine, wanted).argv
    return list(argv[argv.index("--tensor-parallel-size") :])


def prompt(seed: int, tokens: int) -> list[int]:
    """Ids of tokens that are whole words or more."""
    rng = random.Random(seed)
    return [rng.randrange(256, 6000) for _ in range(tokens)]


def ask(
    server: VllmServer, ids: Sequence[int], wish: Wish | None = None, *, salt: str = SALT, **more: Any
) -> tuple[Completion, Report]:
    """A greedy completion, and what the store did for it."""
    wanted = msgspec.structs.replace(wish or Wish(store=False), report=True)
    done = server.complete(ids, cache_salt=salt, **{PARAMS: {NAME: msgspec.to_builtins(wanted)}, **more})
    return done, msgspec.convert(done.kv_transfer_params[NAME], Report)


def fill(server: VllmServer, kv: KvSettings, ids: Sequence[int], *, salt: str = SALT, within_s: float = 60) -> Report:
    """Have a server compute a prompt, and wait until all its whole blocks are stored."""
    _, report = ask(server, ids, Wish(store=True), salt=salt, max_tokens=1)
    there = stored(kv, keys(ids, report), within_s=within_s)
    assert there, f"blocks missing after {within_s:g} s:\n{server.log_tail(3000)}"
    return report


def stored(kv: KvSettings, wanted: Sequence[BlockKey], *, within_s: float) -> bool:
    """Wait until all these blocks are in the store; whether they came in time."""
    deadline_s = time.monotonic() + within_s
    store = open_store(kv, data_dir=Path("/nonexistent"))
    try:
        while not all(store.has(key) for key in wanted):
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(0.02)
    finally:
        store.close()
    return True


def keys(ids: Sequence[int], report: Report) -> list[BlockKey]:
    """The keys of a prompt's whole blocks."""
    whole = len(ids) - len(ids) % report.block_tokens
    salt = bytes.fromhex(report.salt)
    return [span.key for span in spans(ids[:whole], signature=_signature(report), salt=salt)]


def poison(kv: KvSettings, key: BlockKey, report: Report, *, place: int) -> None:
    """Change a stored block's payload, and seal it again as if it were right."""
    store = open_store(kv, data_dir=Path("/nonexistent"))
    salt = bytes.fromhex(report.salt)
    try:
        block = store.get(key, salt=salt)
        assert block is not None
        payload = bytearray(block.payload)
        half = len(payload) // 2
        payload[:half] = payload[half:] if len(payload) % 2 == 0 else payload[half + 1 :]
        store.drop([key])
        meta = BlockMeta(kind="block", signature=_signature(report), start=place * BLOCK, stop=(place + 1) * BLOCK)
        store.put(key, [memoryview(payload)], meta, salt=salt)
    finally:
        store.close()


def block_files(folder: Path) -> list[Path]:
    """All stored blocks' files."""
    return sorted(_files(folder))


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and len(path.stem) == 64:
            yield path


def _signature(report: Report) -> Signature:
    return Signature(report.signature)
