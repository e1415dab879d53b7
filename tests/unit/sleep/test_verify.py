from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from fakes.background import T, house, key_of
from fakes.fill_engine import FakeFillEngine
from fakes.virtual_time import now_s, virtual
from nightfill.contexts.context import FillState
from nightfill.engines.engine import Way
from nightfill.kv.key import salt_of
from nightfill.sleep.fidelity import Outcome, Verdict
from nightfill.sleep.fill import Gone, Stopped
from nightfill.sleep.gatekeeper import Gatekeeper
from nightfill.sleep.verify import MOST_CUTS, Crowded, Scope, VerifyRun
from nightfill.state.answers import Answer, AnswerKey, AnswerScope, Origin
from nightfill.state.jobs import JobKind, JobState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fakes.background import House
    from nightfill.contexts.context import Fill, FillKey

TEXT = "x" * 3000
OWN_AND_STORED = [Way.OWN, Way.OWN, Way.STORED, Way.STORED]


async def until(house: House, key: FillKey, state: FillState) -> Fill:
    deadline_s = now_s() + 3600
    while True:
        fill = await house.state.book.fill(key)
        if fill is not None and fill.state is state:
            return fill
        assert now_s() < deadline_s, fill
        await asyncio.sleep(0.05)


@asynccontextmanager
async def filled(folder: Path) -> AsyncIterator[tuple[House, FillKey]]:
    """A house with one fill that is ready."""
    async with house(folder) as h:
        key = key_of(await h.put(TEXT))
        async with h.working():
            await until(h, key, FillState.READY)
        yield h, key


def spoil(house: House) -> None:
    house.store.wrong |= house.store.stored.keys()


def run_of(house: House, key: FillKey, engine: FakeFillEngine, **more: object) -> VerifyRun:
    stop = more.pop("stop", None)
    assert stop is None or isinstance(stop, asyncio.Event)
    gate = Gatekeeper(house.board, house.settings, stop=stop or asyncio.Event(), clock=now_s)
    scope = Scope(questions=2, noise=bool(more.pop("noise", False)))
    assert not more
    books = house.state
    return VerifyRun(key, book=books.book, answers=books.answers, engine=engine, gate=gate, scope=scope)


def engine_of(house: House, **more: float | bool) -> FakeFillEngine:
    return FakeFillEngine(store=house.store, log=house.log, **more)  # type: ignore[arg-type]


@virtual
async def test_kv_that_is_the_engines_own_needs_no_more_than_two_ways(tmp_path: Path) -> None:
    async with filled(tmp_path) as (h, key):
        verdict = await run_of(h, key, engine_of(h)).run()
        assert isinstance(verdict, Verdict)
        assert (verdict.outcome, verdict.noise, h.log.ways) == (Outcome.EQUAL, None, OWN_AND_STORED)
        h.log.ways.clear()
        verdict = await run_of(h, key, engine_of(h), noise=True).run()
        assert isinstance(verdict, Verdict)
        assert verdict.outcome is Outcome.EQUAL
        assert verdict.noise == pytest.approx(0.01)
        assert h.log.ways == [*OWN_AND_STORED, Way.COLD, Way.COLD, Way.AGAIN, Way.AGAIN]


@virtual
async def test_what_differs_by_no_more_than_the_engine_from_itself_stays_ready(tmp_path: Path) -> None:
    async with filled(tmp_path) as (h, key):
        verdict = await run_of(h, key, engine_of(h, loads_off=0.015)).run()
        assert isinstance(verdict, Verdict)
        assert (verdict.outcome, len(h.log.ways)) == (Outcome.NOISE, 8)
        await until(h, key, FillState.READY)


@virtual
async def test_wrong_kv_is_put_into_quarantine_dropped_and_computed_anew(tmp_path: Path) -> None:
    async with filled(tmp_path) as (h, key):
        spoil(h)
        said = AnswerKey(b"k" * 32)
        (context,) = await h.state.book.contexts(T)
        answer = Answer(
            key=said,
            scope=AnswerScope(b"s" * 32),
            tenant=T,
            context=context.name,
            fingerprint=context.current,
            model="m",
            question="",
            body=b"{}",
            origin=Origin.LIVE,
            at_s=0,
            ttl_s=1e9,
        )
        assert await h.state.answers.put(answer)
        verdict = await run_of(h, key, engine_of(h)).run()
        assert isinstance(verdict, Verdict)
        assert verdict.outcome is Outcome.DRIFT
        assert await h.state.answers.get(said) is None  # it may have been said with the wrong KV
        fill = await until(h, key, FillState.STALE)
        assert fill.drifted
        assert fill.reason.startswith("drifted: drift: ")
        assert (h.store.stored, h.log.discards) == ({}, 1)
        # A copy that somebody else still has must not be gone on from.
        name = (fill.tokens, salt_of(T))
        h.store.stored[name] = 3001
        h.store.wrong.add(name)
        computed = h.log.computed
        async with h.working():
            again = await until(h, key, FillState.READY)
        assert (again.drifted, h.store.wrong) == (False, set())
        assert h.log.computed - computed >= 3001


@virtual
async def test_what_cannot_be_loaded_whole_is_stale_and_not_called_wrong(tmp_path: Path) -> None:
    async with filled(tmp_path) as (h, key):
        h.store.stored = dict.fromkeys(h.store.stored, 1000)
        verdict = await run_of(h, key, engine_of(h)).run()
        assert isinstance(verdict, Verdict)
        assert verdict.outcome is Outcome.MISSING
        fill = await until(h, key, FillState.STALE)
        assert (fill.drifted, fill.reason) == (False, "1,000 of 3,001 tokens could be loaded")
        assert h.log.discards == 0


@virtual
async def test_a_fill_that_is_not_ready_and_one_of_another_model_are_left_alone(tmp_path: Path) -> None:
    async with filled(tmp_path) as (h, key):
        other = engine_of(h, signature="cd" * 32)  # type: ignore[arg-type]
        assert isinstance(await run_of(h, key, other).run(), Gone)
        await h.state.book.mark_fill(key, state=FillState.EVICTED, reason="gone")
        assert isinstance(await run_of(h, key, engine_of(h)).run(), Gone)
        assert h.log.ways == []


@virtual
async def test_a_fill_that_was_made_anew_meanwhile_is_not_put_into_quarantine(tmp_path: Path) -> None:
    async with filled(tmp_path) as (h, key):
        spoil(h)
        looking = asyncio.create_task(run_of(h, key, engine_of(h)).run())
        await asyncio.sleep(3)
        await h.state.book.mark_fill(key, state=FillState.EVICTED, reason="by somebody else")
        assert isinstance(await looking, Verdict)
        assert h.log.discards == 0


@virtual
async def test_live_requests_come_first_and_stop_it_where_it_stands(tmp_path: Path) -> None:
    async with filled(tmp_path) as (h, key):
        engine = engine_of(h)
        looking = asyncio.create_task(run_of(h, key, engine).run())
        await asyncio.sleep(3)
        h.board.enter()
        h.log.batches.clear()
        await asyncio.sleep(60)
        assert len(h.log.batches) <= 5
        h.board.leave()
        assert isinstance(await looking, Verdict)
        assert engine.frozen_times == 1


@virtual
async def test_on_an_engine_that_cannot_be_stopped_it_gives_up_after_a_while(tmp_path: Path) -> None:
    async with filled(tmp_path) as (h, key):
        looking = asyncio.create_task(run_of(h, key, engine_of(h, freezes=False)).run())
        for _ in range(MOST_CUTS):
            await asyncio.sleep(1)
            h.board.enter()
            await asyncio.sleep(0.1)
            h.board.leave()
        assert isinstance(await looking, Crowded)
        stop = asyncio.Event()
        looking = asyncio.create_task(run_of(h, key, engine_of(h, freezes=False), stop=stop).run())
        await asyncio.sleep(1)
        stop.set()
        assert isinstance(await looking, Stopped)


@virtual
async def test_a_worker_does_audits_after_fills_and_counts_what_came_of_them(tmp_path: Path) -> None:
    async with filled(tmp_path) as (h, key):

        async def audit() -> str:
            job = await h.state.jobs.enqueue(
                kind=JobKind.VERIFY, target=str(key), tenant=T, label="repo", priority=-1.0
            )
            deadline_s = now_s() + 3600
            while (found := await h.state.jobs.get(job.id)) is None or found.state is not JobState.DONE:
                assert now_s() < deadline_s
                await asyncio.sleep(0.1)
            return found.note

        async with h.working():
            assert (await audit()).startswith("equal: 2 of 2")
            spoil(h)
            assert (await audit()).startswith("drift: ")
            await until(h, key, FillState.READY)
            assert (await audit()).startswith("equal: ")
        assert await h.state.jobs.outcomes(JobKind.VERIFY) == {"equal": 2, "drift": 1}
        assert await h.state.jobs.outcomes(JobKind.FILL) == {}


@virtual
async def test_an_audit_that_fails_is_never_dead_so_that_the_next_one_can_come(tmp_path: Path) -> None:
    async with filled(tmp_path) as (h, key):
        h.make_engine = lambda h: engine_of(h, dies_after=1000)
        await h.state.jobs.enqueue(kind=JobKind.VERIFY, target=str(key), tenant=T, label="repo", priority=-1.0)
        async with h.working():
            deadline_s = now_s() + 3600
            while await h.state.jobs.outcomes(JobKind.VERIFY) != {"failed": 1}:
                assert now_s() < deadline_s
                await asyncio.sleep(1)
        assert {job.state for job in await h.state.jobs.jobs()} == {JobState.DONE}
