"""Work beside filling, as the worker does it: with an engine behind the gate, under a lease, charged and settled."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from fakes.background import SETTINGS, T, house
from fakes.fill_engine import SIGNATURE
from fakes.virtual_time import now_s, until, virtual
from nightfill.errors import EngineRefused
from nightfill.sleep.duty import Desk, Done
from nightfill.state.jobs import JobKind, JobState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fakes.background import House
    from nightfill.engines.engine import Description
    from nightfill.sleep.lease import HeldLease
    from nightfill.state.jobs import Job


@dataclass
class Errand:
    """Queues itself once per context; says what it was given, and waits if it is told to."""

    house: House
    needs: str = SIGNATURE
    waits: bool = False
    fails: bool = False
    kind: JobKind = JobKind.ANSWER
    desks: list[Desk] = field(default_factory=list)

    async def plan(self, descriptions: Sequence[Description]) -> None:
        assert [known.signature for known in descriptions] == [SIGNATURE]
        if not await self.jobs():
            await self.house.state.jobs.enqueue(
                kind=self.kind, target="it", tenant=T, label="repo", priority=1.0, needs=self.needs, reserve_tokens=100
            )

    async def run(self, held: HeldLease, desk: Desk) -> Done:
        self.desks.append(desk)
        held.computed(30, 0.5)
        if self.fails:
            raise EngineRefused("it would not", engine="local", status=500)
        if self.waits:
            await asyncio.sleep(10 * SETTINGS.lease_s)
        return Done(outcome="well", note="3 of 3")

    async def jobs(self) -> list[Job]:
        return [job for job in await self.house.state.jobs.jobs() if job.kind is self.kind]


async def ended(errand: Errand) -> Job:
    deadline_s = now_s() + 7200
    while True:
        jobs = await errand.jobs()
        if jobs and jobs[0].state not in (JobState.QUEUED, JobState.LEASED):
            return jobs[0]
        assert now_s() < deadline_s
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("needs", [SIGNATURE, ""])
@virtual
async def test_a_duty_gets_an_engine_if_its_job_needs_one_and_what_it_computes_is_charged(
    tmp_path: Path, needs: str
) -> None:
    async with house(tmp_path) as h:
        errand = Errand(h, needs=needs, waits=True)
        h.duties = [errand]
        await h.put("x" * 100)
        async with h.working():
            job = await ended(errand)
        assert (job.state, job.attempts, job.note) == (JobState.DONE, 1, "3 of 3"), "the lease was renewed meanwhile"
        assert await h.state.jobs.outcomes(JobKind.ANSWER) == {"well": 1}
        assert [desk.engine is not None for desk in errand.desks] == [bool(needs)]
        lines = await h.state.ledger.lines(since_day=0, until_day=10**6, tenant=T)
        assert sum(line.background_tokens for line in lines) == 30


@virtual
async def test_a_duty_that_always_fails_ends_and_leaves_nothing_dead(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        errand = Errand(h, fails=True)
        h.duties = [errand]
        await h.put("x" * 100)
        async with h.working():
            job = await ended(errand)
        assert job.state is JobState.DONE
        assert len(errand.desks) == SETTINGS.max_failures
        assert await h.state.jobs.outcomes(JobKind.ANSWER) == {"failed": 1}


@virtual
async def test_a_worker_that_is_to_stop_hands_the_job_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        errand = Errand(h, waits=True)
        h.duties = [errand]
        await h.put("x" * 100)
        async with h.working():
            await until(lambda: bool(errand.desks))
        (job,) = await errand.jobs()
        assert (job.state, job.failures, job.reserved_tokens) == (JobState.QUEUED, 0, 70)
