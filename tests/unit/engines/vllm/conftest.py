from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.kv import FakeClock
from fakes.vllm import FakeVllm
from nightfill.config import EngineSettings
from nightfill.engines.vllm.engine import VllmEngine
from nightfill.kv.buffer import Buffers
from nightfill.kv.seal import ChecksumSealer
from nightfill.kv.store import Store
from nightfill.kv.tiers.ram import RamTier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BLOCK = 32


@pytest.fixture
def store() -> Iterator[Store]:
    clock = FakeClock()
    store = Store(
        [RamTier(name="ram", max_bytes=1 << 26, clock=clock)], ChecksumSealer(Buffers()), ttl_s=3600, clock=clock
    )
    yield store
    store.close()


@pytest.fixture
async def server(store: Store) -> AsyncIterator[FakeVllm]:
    async with FakeVllm(store=store).running() as server:
        yield server


@pytest.fixture
async def engine(server: FakeVllm, store: Store) -> AsyncIterator[VllmEngine]:
    settings = EngineSettings(name="v1", kind="vllm", url=server.url, api_key="k1")
    engine = VllmEngine(settings, store=store, block_tokens=BLOCK)
    yield engine
    await engine.aclose()
