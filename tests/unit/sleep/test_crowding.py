"""Contexts that do not fit into the store together: a worker over a real store, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from fakes.background import WALL_S, House, T, house, key_of
from fakes.fill_engine import SIGNATURE, FakeFill, FakeFillEngine
from fakes.virtual_time import now_s, virtual
from nightfill.config import ByteSize, KvSettings, TierSettings
from nightfill.contexts.context import ContextName, FillState
from nightfill.kv import BlockMeta, Store, open_store, spans
from nightfill.kv.holdings import keys_of
from nightfill.sleep.plan import Verdict
from nightfill.sleep.planner import plan_lines
from nightfill.sleep.upkeep import StoreUpkeep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nightfill.contexts.context import Context
    from nightfill.engines.engine import Prefix
    from nightfill.sleep.plan import PlanLine

BLOCK_BYTES = 28 << 10
TEXT_TOKENS = 2000  # 8 blocks


class StoringFill(FakeFill):
    """Puts a block into the store for every 256 tokens, as engines do."""

    def __init__(self, engine: FakeFillEngine, prefix: Prefix, store: Store) -> None:
        super().__init__(engine, prefix)
        self._store, self._salt = store, prefix.salt
        self._spans = spans(prefix.tokens, signature=SIGNATURE, salt=prefix.salt)

    async def resume(self) -> int:
        await super().resume()
        there = self._store.leading(self._spans)
        self._reached = self._spans[there - 1].stop if there else 0
        return self._reached

    async def keep(self) -> int:
        for span in self._spans:
            if span.stop <= self._reached and not self._store.has(span.key):
                meta = BlockMeta(kind="block", signature=SIGNATURE, start=span.start, stop=span.stop, layout=b"")
                self._store.put(span.key, [bytes(BLOCK_BYTES)], meta, salt=self._salt)
        return await super().keep()


class StoringEngine(FakeFillEngine):
    def __init__(self, house: House, kv: Store) -> None:
        super().__init__(store=house.store, log=house.log)
        self._kv = kv

    @contextlib.asynccontextmanager
    async def fill(self, prefix: Prefix) -> AsyncIterator[FakeFill]:
        self.log.fills += 1
        yield StoringFill(self, prefix, self._kv)


@contextlib.asynccontextmanager
async def crowded(folder: Path, *, apart: bool) -> AsyncIterator[tuple[House, Store]]:
    """Room for one context and a half. `apart`: the engine stores by itself, as a server in another process does."""
    tier = TierSettings(kind="disk", max_bytes=ByteSize(12 * 32 << 10), min_free_bytes=ByteSize(0))
    loop = asyncio.get_running_loop()
    settings = KvSettings(tiers=(tier,))
    kv = open_store(settings, data_dir=folder, clock=lambda: WALL_S + loop.time())
    stores = open_store(settings, data_dir=folder, clock=lambda: WALL_S + loop.time()) if apart else kv
    try:
        async with house(folder) as h:
            h.upkeep = StoreUpkeep(kv, clock=now_s)
            h.make_engine = lambda h: StoringEngine(h, stores)
            yield h, kv
    finally:
        kv.close()
        stores.close()


async def state_of(h: House, context: Context) -> FillState | None:
    fill = await h.state.book.fill(key_of(context))
    return fill.state if fill else None


async def line_of(h: House, name: str) -> PlanLine:
    description = await FakeFillEngine().describe()
    lines = await plan_lines(h.state, [description], now_s=WALL_S + now_s(), default_ttl_s=1e9)
    return next(line for line in lines if line.context == name)


@pytest.mark.parametrize("apart", [False, True])
@virtual
async def test_the_second_of_equals_waits_and_does_not_push_out_the_first(tmp_path: Path, apart: bool) -> None:
    async with crowded(tmp_path, apart=apart) as (h, kv):
        first = await h.put("a" * TEXT_TOKENS, name="first")
        async with h.working():
            await until_ready(h, first)
            second = await h.put("b" * TEXT_TOKENS, name="second")
            await asyncio.sleep(700)
            computed = h.log.computed
            await asyncio.sleep(700)
            assert await state_of(h, first) is FillState.READY
            assert await state_of(h, second) is FillState.FILLING
            line = await line_of(h, "second")
            assert (line.verdict, "no room in the store: disk" in line.why) == (Verdict.FILL, True)
            assert h.log.computed - computed < 700 * 1000 / 20, "waiting takes little of the engine's time"
            fill = await h.state.book.fill(key_of(first))
            assert fill is not None
            await h.state.book.delete(T, ContextName("first"))
            assert kv.drop(keys_of(fill)) == 8
            await until_ready(h, second)


@pytest.mark.parametrize("apart", [False, True])
@virtual
async def test_what_is_worth_clearly_more_takes_the_place_of_what_is_not(tmp_path: Path, apart: bool) -> None:
    async with crowded(tmp_path, apart=apart) as (h, _):
        first = await h.put("a" * TEXT_TOKENS, name="first")
        async with h.working():
            await until_ready(h, first)
            await asyncio.sleep(3600)
            second = await h.put("b" * TEXT_TOKENS, name="second")
            await until_ready(h, second)
            await asyncio.sleep(600)
            assert await state_of(h, second) is FillState.READY
            assert await state_of(h, first) is FillState.EVICTED


async def until_ready(h: House, context: Context) -> None:
    deadline_s = now_s() + 3600
    while await state_of(h, context) is not FillState.READY:
        assert now_s() < deadline_s, await line_of(h, context.name)
        await asyncio.sleep(1)
