"""What the worker computes is what the ledger has and the budgets have spent, whatever ends a job."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fakes.background import WALL_S, House, T, house, key_of
from fakes.fill_engine import SIGNATURE, FakeFillEngine
from fakes.virtual_time import now_s, until, virtual
from nightfill.contexts.context import FillState, Signature
from nightfill.errors import StateUnavailable
from nightfill.ledger import day_of
from nightfill.state.budgets import Period, Scope
from nightfill.state.jobs import JobKind, JobState

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "x" * 3000


async def booked(h: House) -> tuple[int, float, int]:
    """Tokens and seconds in the ledger, and completed fills."""
    today = day_of(WALL_S + now_s())
    lines = await h.state.ledger.lines(since_day=today - 30, until_day=today)
    tokens = sum(line.background_tokens for line in lines)
    for period in Period:
        (all_of_them,) = [line for line in await h.state.budgets.lines([Scope()]) if line.period is period]
        assert all_of_them.spent == tokens, "budgets and ledger never differ"
    return tokens, sum(line.background_s for line in lines), sum(line.fills for line in lines)


async def unheard(*_: object, **__: object) -> None:
    raise StateUnavailable("nobody listens")


async def state_of(h: House, state: JobState) -> None:
    deadline_s = now_s() + 3600
    while [job.state for job in await h.state.jobs.jobs()] != [state]:
        assert now_s() < deadline_s
        await asyncio.sleep(0.05)


@virtual
async def test_a_fill_costs_what_the_engine_computed_and_its_proof(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.put(TEXT)
        async with h.working():
            await state_of(h, JobState.DONE)
        tokens, seconds, fills = await booked(h)
        assert (tokens, fills) == (h.log.computed, 1) == (3002, 1)
        assert seconds == pytest.approx(3.0, rel=0.1)
        assert (await h.state.budgets.lines([Scope()]))[0].reserved == 0


@virtual
async def test_what_live_requests_cut_short_is_charged_once(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        # Small batches, so that what is cut short has done some of its slice.
        h.make_engine = lambda house: FakeFillEngine(store=house.store, log=house.log, freezes=False, batch_tokens=8)
        await h.put(TEXT)
        async with h.working():
            for _ in range(10):
                await asyncio.sleep(0.37)
                h.board.enter()
                await asyncio.sleep(0.25)
                h.board.leave()
            await state_of(h, JobState.DONE)
        tokens, _, fills = await booked(h)
        assert (tokens, fills) == (h.log.computed, 1)


@virtual
async def test_a_worker_that_is_stopped_leaves_its_part_of_the_bill_and_the_next_one_adds_its_own(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as h:
        await h.put(TEXT)
        async with h.working("w1"):
            await until(lambda: h.log.computed > 1000)
        first, _, fills = await booked(h)
        assert (first, fills) == (h.log.computed, 0)
        async with h.working("w2"):
            await state_of(h, JobState.DONE)
        tokens, _, fills = await booked(h)
        assert (tokens, fills) == (h.log.computed, 1)


@virtual
async def test_a_crash_leaves_out_of_the_bill_what_was_computed_in_its_last_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        await h.put(TEXT)
        task = asyncio.create_task(h.worker("w1").run(asyncio.Event()))
        await until(lambda: h.log.computed > 2500)
        known = h.log.computed
        # As by a crash: nothing that it would still say is heard.
        monkeypatch.setattr(h.state.jobs, "release", unheard)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        tokens, _, _ = await booked(h)
        assert known - 1100 <= tokens <= known


@virtual
async def test_a_fill_that_fails_is_charged_and_what_was_set_aside_returns_when_it_is_dead(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.make_engine = lambda house: FakeFillEngine(store=house.store, log=house.log, proves=False)
        await h.put(TEXT)
        async with h.working():
            await state_of(h, JobState.DEAD)
        tokens, _, fills = await booked(h)
        assert (tokens > 3000, fills) == (True, 0)
        assert (await h.state.budgets.lines([Scope(T)]))[0].reserved == 0


@virtual
async def test_an_audit_is_work_too(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put(TEXT)
        async with h.working():
            await state_of(h, JobState.DONE)
            before = h.log.computed
            key = key_of(context)
            await h.state.jobs.enqueue(
                kind=JobKind.VERIFY, target=str(key), tenant=T, label="repo", priority=1, needs=SIGNATURE
            )
            await until(lambda: len(h.log.ways) > 0)
            await asyncio.sleep(30)
        tokens, seconds, fills = await booked(h)
        assert h.log.computed > before
        assert (tokens, fills) == (h.log.computed, 1)
        assert seconds == pytest.approx(h.log.computed / 1000, rel=0.2)


@virtual
async def test_a_worker_leaves_alone_what_its_engines_cannot_fill(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.put(TEXT)
        other = Signature("cd" * 32)
        await h.state.engines.put("elsewhere", {"signature": other})
        for needs, tokens, target in ((other, 10, "other"), (SIGNATURE, 1 << 20, "long")):
            await h.state.jobs.enqueue(
                kind=JobKind.VERIFY, target=target, tenant=T, label=target, priority=9, needs=needs, total_tokens=tokens
            )
        async with h.working():
            await until_filled(h)
        jobs = {job.label: (job.state, job.attempts) for job in await h.state.jobs.jobs()}
        assert jobs == {
            "repo": (JobState.DONE, 1),
            "other": (JobState.QUEUED, 0),
            "long": (JobState.QUEUED, 0),
        }


async def until_filled(h: House) -> None:
    deadline_s = now_s() + 600
    while not any(fill.state is FillState.READY for fill in await h.state.book.fills()):
        assert now_s() < deadline_s
        await asyncio.sleep(0.1)
    await asyncio.sleep(5)


@virtual
async def test_machines_are_told_apart_in_the_ledger(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.machines = {"local": "spot-l4"}
        await h.put(TEXT)
        async with h.working():
            await state_of(h, JobState.DONE)
        today = day_of(WALL_S + now_s())
        lines = await h.state.ledger.lines(since_day=today, until_day=today)
        assert [(line.machine, line.context, line.fills) for line in lines] == [("spot-l4", "repo", 1)]
