from __future__ import annotations

from typing import TYPE_CHECKING

from fakes.background import T, house, key_of
from fakes.fill_engine import FakeFillEngine
from fakes.virtual_time import now_s, virtual
from nightfill.contexts.context import ContextName
from nightfill.sleep.plan import Verdict
from nightfill.sleep.planner import Planner, plan_lines
from nightfill.state.jobs import JobState

if TYPE_CHECKING:
    from pathlib import Path


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
