from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from fakes.background import House, T, house, key_of
from fakes.fill_engine import FakeFillEngine
from fakes.virtual_time import now_s, virtual
from nightfill.config import PriceSettings
from nightfill.contexts.context import ContextName, FillKey, Signature
from nightfill.sleep import planner as planner_module
from nightfill.sleep.autoscale import PACE
from nightfill.sleep.bill import Bill
from nightfill.sleep.description import SEEN_S, note_of
from nightfill.sleep.plan import Verdict
from nightfill.sleep.planner import Planner, plan_lines
from nightfill.state.budgets import Period, Scope
from nightfill.state.jobs import JobState

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


@virtual
async def test_a_tick_queues_what_is_to_be_filled_once_and_cancels_what_is_gone(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        engine = await FakeFillEngine().describe()
        planner = Planner(h.state, clock=now_s, default_ttl_s=3600)
        old = await h.put("old")
        for _ in range(3):
            await planner.tick([engine])
        assert (await h.one_job()).target == str(key_of(old))
        new = await h.put("new")
        await planner.tick([engine])
        jobs = {job.target: job.state for job in await h.state.jobs.jobs()}
        assert jobs == {str(key_of(old)): JobState.CANCELLED, str(key_of(new)): JobState.QUEUED}
        await h.state.book.delete(T, ContextName("repo"))
        await planner.tick([engine])
        assert {job.state for job in await h.state.jobs.jobs()} == {JobState.CANCELLED}


@virtual
async def test_planning_without_an_engine_changes_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.put("text")
        (line,) = await plan_lines(h.state, (), now_s=now_s(), default_ttl_s=3600)
        assert (line.verdict, line.key) == (Verdict.SKIP, None)
        (line,) = await plan_lines(h.state, [await FakeFillEngine().describe()], now_s=now_s(), default_ttl_s=3600)
        assert line.verdict is Verdict.FILL
        assert await h.state.jobs.jobs() == []
        assert await h.state.book.fills() == []


async def queued(h: House) -> set[str]:
    return {job.label for job in await h.state.jobs.jobs(states=[JobState.QUEUED])}


def planner_of(h: House, *, bill: Bill | None = None) -> Planner:
    return Planner(h.state, clock=h.wall, default_ttl_s=3600, bill=bill)


@virtual
async def test_a_tick_looks_at_so_many_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_module, "AT_ONCE", 3)
    async with house(tmp_path) as h:
        engine, planner = await FakeFillEngine().describe(), planner_of(h)
        for n in range(7):
            await h.put(f"text {n}", name=f"c{n}")
        # What is left of the last one goes to the walk through all that a new engine sets off.
        assert [len(await planner.tick([engine])) for _ in range(3)] == [3, 3, 3]
        assert await queued(h) == {f"c{n}" for n in range(7)}
        while await planner.tick([engine]):
            """To the end of the walk."""
        assert await planner.tick([engine]) == []
        await h.put("y", name="c3")
        assert [line.context for line in await planner.tick([engine])] == ["c3"]


@virtual
async def test_what_is_worth_most_has_the_first_claim_on_a_budget_however_late_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner_module, "AT_ONCE", 4)
    async with house(tmp_path) as h:
        await h.state.budgets.set_limit(Scope(), Period.DAY, 2500)
        for n in range(12):
            await h.put(f"{n}" + "x" * 2990, name=f"c{n:02}")
            await asyncio.sleep(3600)  # the later ones were put more recently, and so are worth more
        engine = await FakeFillEngine().describe()
        planner = planner_of(h, bill=Bill(h.state, prices=PriceSettings(), stop_after_s=0.0))
        for _ in range(12):
            await planner.tick([engine])
        assert await queued(h) == {"c10", "c11"}
        for job in await h.state.jobs.jobs():
            await h.state.jobs.cancel(job.id)
            await h.state.book.delete(T, ContextName(job.label))
        for _ in range(4):
            await planner.tick([engine])
        assert await queued(h) == {"c08", "c09"}, "those that wait come by their value, too"


@virtual
async def test_for_a_new_engine_all_contexts_are_looked_at_again(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        engine, planner = await FakeFillEngine().describe(), planner_of(h)
        await h.put("text")
        await planner.tick([engine])
        assert await planner.tick([engine]) == []
        other = replace(engine, signature=Signature("7" * 64))
        await planner.tick([other])
        jobs = await h.state.jobs.jobs()
        assert {(FillKey.parse(job.target).signature, job.state) for job in jobs} == {
            (engine.signature, JobState.CANCELLED),
            (other.signature, JobState.QUEUED),
        }


@virtual
async def test_a_worker_plans_for_the_engines_of_others_while_they_are_there(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        mine, planner = await FakeFillEngine().describe(), planner_of(h)
        theirs = replace(mine, engine="theirs", signature=Signature("7" * 64))
        gone = replace(mine, engine="gone", signature=Signature("8" * 64))
        await h.state.engines.put("gone", {**note_of(gone), PACE: 0})
        await asyncio.sleep(SEEN_S + 1)
        await h.state.engines.put("theirs", {**note_of(theirs), PACE: 0})
        await h.put("text")
        lines = await planner.tick([mine])
        assert {line.engine for line in lines} == {mine.engine, "theirs"}
