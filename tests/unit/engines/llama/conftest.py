from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fakes.kv import SIGNATURE, FakeClock
from fakes.llama import FakeLlama
from nightfill.engines.engine import Prefix
from nightfill.engines.llama.transfer import Transfer
from nightfill.kv.buffer import Buffers
from nightfill.kv.seal import ChecksumSealer
from nightfill.kv.store import Store
from nightfill.kv.tiers.disk import DiskTier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BLOCK = 32


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    buffers, clock = Buffers(), FakeClock()
    disk = DiskTier(
        tmp_path / "kv",
        name="disk",
        max_bytes=1 << 30,
        min_free_bytes=0,
        direct=False,
        buffers=buffers,
        clock=clock,
        refresh_every_s=0.0,
    )
    store = Store([disk], ChecksumSealer(buffers), ttl_s=3600, clock=clock)
    yield store
    store.close()


@pytest.fixture
def make_transfer(store: Store, tmp_path: Path) -> Iterator[Callable[..., tuple[FakeLlama, Transfer]]]:
    pool = ThreadPoolExecutor(max_workers=2)

    def make(*, plain: bool = True, streams: int = 1) -> tuple[FakeLlama, Transfer]:
        folder = tmp_path / "scratch"
        folder.mkdir(exist_ok=True)
        llama = FakeLlama(folder, plain=plain, streams=streams)
        transfer = Transfer(
            store=store, api=llama.api, scratch=folder, signature=SIGNATURE, block_tokens=BLOCK, pool=pool
        )
        transfer.plain, transfer.streams = plain, streams
        return llama, transfer

    yield make
    pool.shutdown()


@pytest.fixture
def prefix() -> Prefix:
    """Three blocks and a rest, no two tokens alike."""
    return Prefix(tokens=tuple(range(1000, 1000 + 3 * BLOCK + 10)), salt=b"salt")
