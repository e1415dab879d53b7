from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec

from fakes.background import SETTINGS, WALL_S, House, T, house, key_of
from fakes.fill_engine import FakeFillEngine
from fakes.virtual_time import now_s, virtual
from nightfill.cli.units import parse_duration
from nightfill.contexts.context import FillState
from nightfill.sleep import note_of
from nightfill.sleep.slumber import awake_of, tell
from nightfill.sleep.windows import windows_of
from nightfill.state.jobs import ASKED, JobKind, JobState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nightfill.contexts.context import Context

TEXT = "x" * 3000


@contextlib.asynccontextmanager
async def bedroom(folder: Path, *windows: str) -> AsyncIterator[House]:
    """A house whose only model may sleep, and was described by its gateway. It is 22:30 UTC."""
    async with house(folder) as h:
        h.sleepers = frozenset({"local"})
        h.settings = msgspec.structs.replace(SETTINGS, windows=windows)
        h.windows = windows_of(h.settings, duration=parse_duration) if windows else None
        description = await FakeFillEngine(store=h.store, log=h.log).describe()
        await h.state.engines.put("local", note_of(description))
        yield h


async def state_of(h: House, context: Context) -> FillState | None:
    fill = await h.state.book.fill(key_of(context))
    return None if fill is None else fill.state


@virtual
async def test_the_fill_of_a_sleeping_model_waits_for_it_to_wake_and_loads_no_copy_of_it(tmp_path: Path) -> None:
    async with bedroom(tmp_path) as h, h.working():
        await tell(h.state.engines, "local", awake=False)
        context = await h.put(TEXT)
        await asyncio.sleep(60)
        assert (await h.one_job()).state is JobState.QUEUED
        assert h.engines == []
        await tell(h.state.engines, "local", awake=True)
        await asyncio.sleep(20)
        assert await state_of(h, context) is FillState.READY


@virtual
async def test_in_a_window_it_is_filled_while_it_sleeps(tmp_path: Path) -> None:
    async with bedroom(tmp_path, "40 22 * * *") as h, h.working():
        await tell(h.state.engines, "local", awake=False)
        context = await h.put(TEXT)
        await asyncio.sleep(595)
        assert (await h.one_job()).state is JobState.QUEUED
        assert h.engines == []
        await asyncio.sleep(30)
        assert await state_of(h, context) is FillState.READY


@virtual
async def test_what_somebody_asked_for_is_filled_while_it_sleeps(tmp_path: Path) -> None:
    async with bedroom(tmp_path) as h, h.working():
        await tell(h.state.engines, "local", awake=False)
        context = await h.put(TEXT)
        key = key_of(context)
        await h.state.jobs.enqueue(
            kind=JobKind.FILL, target=str(key), tenant=T, label="repo", priority=ASKED, needs=key.signature
        )
        await asyncio.sleep(20)
        assert await state_of(h, context) is FillState.READY


@virtual
async def test_other_models_are_filled_meanwhile(tmp_path: Path) -> None:
    async with bedroom(tmp_path) as h:
        h.names = ("local", "other")
        async with h.working():
            context = await h.put(TEXT)
            await asyncio.sleep(20)
            # Both compute the same in this house: what the one that is awake can do is not held back.
            assert await state_of(h, context) is FillState.READY


@virtual
async def test_the_word_of_a_gateway_that_is_gone_counts_for_a_while_only(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await tell(h.state.engines, "a", awake=True)
        await tell(h.state.engines, "b", awake=False)
        await h.state.engines.put("c", {"awake": True})
        notes = await h.state.engines.notes()
        assert awake_of(notes, now_s=WALL_S + now_s() + 60) == {"a"}
        assert awake_of(notes, now_s=WALL_S + now_s() + 100) == frozenset()
