from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

import pytest

from fakes.background import WALL_S, FakeUpkeep, House, house, key_of
from fakes.fill_engine import SIGNATURE, FakeFillEngine
from fakes.virtual_time import now_s, virtual
from nightfill.contexts.context import FillState, Form
from nightfill.engines.engine import Description, Prefix, Reuse, Slice
from nightfill.errors import EngineUnavailable
from nightfill.sleep.warm import LOST, OUTRANKED, WarmEngine, Warmer, warming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from nightfill.contexts.context import Content

SPEED_TPS = 1000.0


class Slots:
    """An engine with slots that hold prefixes, in virtual time."""

    freezes = True

    def __init__(self, slots: int = 2, reuse: Reuse = Reuse.NONE) -> None:
        self.room = slots
        self.reuse = reuse
        self.held: dict[tuple[int, ...], int] = {}
        self.slices: list[tuple[float, int]] = []
        self.cut_short = 0
        self.frozen = 0
        self.down = False
        self.context_length = 32_768

    async def describe(self) -> Description:
        if self.down:
            raise EngineUnavailable("is down", engine="local")
        return Description(
            engine="local",
            model="m",
            signature=SIGNATURE,
            context_length=self.context_length,
            kv_bytes_per_token=1,
            slots=self.room,
            reuse=self.reuse,
            embeddings=False,
            version="v",
        )

    async def prefix_tokens(self, content: Content, form: Form) -> tuple[int, ...]:
        assert form is Form.CHAT
        return tuple(cast("str", getattr(content, "text")).encode())  # noqa: B009

    def freeze(self) -> None:
        self.frozen += 1

    def thaw(self) -> None:
        pass

    def warmed(self, wanted: Sequence[Prefix]) -> list[int]:
        return [self.held.get(tuple(prefix.tokens), 0) for prefix in wanted]

    async def warm(self, prefix: Prefix, upto: int) -> Slice:
        tokens = tuple(prefix.tokens)
        reached = self.held.get(tokens, 0)
        seconds = (upto - reached) / SPEED_TPS
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cut_short += 1
            raise
        self.held[tokens] = upto
        self.slices.append((now_s(), upto))
        return Slice(reached=upto, computed=upto - reached, seconds=seconds)


@contextlib.asynccontextmanager
async def kept_warm(here: House, engine: Slots) -> AsyncIterator[None]:
    warmer = Warmer(
        here.state,
        here.board,
        cast("WarmEngine", engine),
        here.settings,
        clock=lambda: WALL_S + now_s(),
        steady=now_s,
    )
    stop = asyncio.Event()
    async with warming(warmer, stop):
        yield
        stop.set()


@virtual
async def test_a_context_is_computed_in_slices_and_the_book_says_so(tmp_path: Path) -> None:
    engine = Slots()
    async with house(tmp_path) as here, kept_warm(here, engine):
        context = await here.put("x" * 3000)
        await asyncio.sleep(20)
        fill = await here.state.book.fill(key_of(context))
        assert fill is not None
        assert (fill.state, fill.stored_tokens, len(fill.tokens)) == (FillState.READY, 3000, 3000)
        assert len(engine.slices) > 2
        assert engine.slices[-1][1] == 3000
        assert fill.fill_seconds == pytest.approx(3.0)


@virtual
async def test_a_live_request_ends_the_slice_and_nothing_runs_beside_it(tmp_path: Path) -> None:
    engine = Slots()
    async with house(tmp_path) as here, kept_warm(here, engine):
        await here.put("x" * 5000)
        await asyncio.sleep(2)
        here.board.enter()
        began_s = now_s()
        await asyncio.sleep(10)
        here.board.leave()
        assert not [at_s for at_s, _ in engine.slices if began_s + 0.01 < at_s <= began_s + 10]
        assert engine.cut_short == 1
        assert engine.frozen == 0, "the serving engine was stopped"
        await asyncio.sleep(20)
        assert engine.slices[-1][1] == 5000


@virtual
async def test_what_a_slot_lost_is_computed_again(tmp_path: Path) -> None:
    engine = Slots()
    async with house(tmp_path) as here, kept_warm(here, engine):
        context = await here.put("x" * 2000)
        await asyncio.sleep(20)
        engine.held.clear()
        here.board.enter()
        await asyncio.sleep(1)
        fill = await here.state.book.fill(key_of(context))
        assert fill is not None
        # Its tokens stay named: a request that computes them warms the slot as well.
        assert (fill.state, fill.reason, fill.stored_tokens) == (FillState.FILLING, LOST, 2000)
        here.board.leave()
        await asyncio.sleep(20)
        fill = await here.state.book.fill(key_of(context))
        assert fill is not None
        assert (fill.state, fill.reason) == (FillState.READY, "")


@virtual
async def test_one_that_is_outranked_leaves_its_slot(tmp_path: Path) -> None:
    engine = Slots()
    async with house(tmp_path) as here, kept_warm(here, engine):
        old = await here.put("x" * 500, name="old")
        await asyncio.sleep(7200)
        new = await here.put("y" * 500, name="new")
        await asyncio.sleep(20)
        fills = {fill.key: fill for fill in await here.state.book.fills()}
        assert fills[key_of(new)].state is FillState.READY
        gone = fills[key_of(old)]
        assert (gone.state, gone.reason, gone.stored_tokens) == (FillState.EVICTED, OUTRANKED, 0)


@virtual
async def test_a_context_that_does_not_fit_is_said_to_and_the_next_one_taken(tmp_path: Path) -> None:
    engine = Slots()
    engine.context_length = 1000
    async with house(tmp_path) as here, kept_warm(here, engine):
        fits = await here.put("y" * 500, name="fits")
        await asyncio.sleep(60)
        long = await here.put("x" * 2000, name="long")
        await asyncio.sleep(60)
        fills = {fill.key: fill for fill in await here.state.book.fills()}
        assert fills[key_of(fits)].state is FillState.READY
        assert "longer than the model's context" in fills[key_of(long)].reason


@virtual
async def test_an_engine_that_is_down_is_waited_for(tmp_path: Path) -> None:
    engine = Slots()
    engine.down = True
    async with house(tmp_path) as here, kept_warm(here, engine):
        context = await here.put("x" * 500)
        await asyncio.sleep(30)
        engine.down = False
        await asyncio.sleep(30)
        fill = await here.state.book.fill(key_of(context))
        assert fill is not None
        assert fill.state is FillState.READY


@virtual
async def test_an_engine_that_uses_restored_kv_is_left_alone(tmp_path: Path) -> None:
    engine = Slots(reuse=Reuse.TRIM)
    async with house(tmp_path) as here, kept_warm(here, engine):
        await here.put("x" * 500)
        await asyncio.sleep(30)
        assert await here.state.book.fills() == []
        assert engine.slices == []


@virtual
async def test_fills_kept_in_slots_are_not_taken_for_bytes_that_left_the_store(tmp_path: Path) -> None:
    """The worker's upkeep looks for blocks, and there are none."""
    engine = Slots()
    async with house(tmp_path) as here:
        here.upkeep = FakeUpkeep(lambda fills: {fill.key: 0 for fill in fills})
        here.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, reuse=Reuse.NONE)
        async with kept_warm(here, engine), here.working():
            context = await here.put("x" * 500)
            await asyncio.sleep(300)
            fill = await here.state.book.fill(key_of(context))
            assert fill is not None
            assert fill.state is FillState.READY
