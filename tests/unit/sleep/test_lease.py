from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from fakes.background import House, house
from fakes.virtual_time import now_s, virtual
from nightfill.errors import LeaseLost, StateUnavailable
from nightfill.sleep.lease import HeldLease
from nightfill.state.jobs import JobKind, WorkerId

if TYPE_CHECKING:
    from pathlib import Path

LEASE_S = 30.0


class Queue:
    """The real queue, out of order at will."""

    def __init__(self, jobs: Any) -> None:
        self._jobs = jobs
        self.down = False
        self.renewals = 0

    async def renew(self, *args: Any, **kwargs: Any) -> Any:
        self.renewals += 1
        if self.down:
            raise StateUnavailable("locked")
        return await self._jobs.renew(*args, **kwargs)


async def held(h: House) -> tuple[Queue, HeldLease]:
    await h.state.jobs.enqueue(kind=JobKind.FILL, target="x", tenant="t", label="l", priority=1)
    lease = await h.state.jobs.lease(WorkerId("w"), kinds=[JobKind.FILL], lease_s=LEASE_S)
    assert lease is not None
    queue = Queue(h.state.jobs)
    return queue, HeldLease(queue, lease, lease_s=LEASE_S, clock=now_s)  # type: ignore[arg-type]


@virtual
async def test_a_beating_lease_is_never_free(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        queue, mine = await held(h)
        beat = asyncio.create_task(mine.beat())
        for _ in range(100):
            await asyncio.sleep(7.3)
            assert await h.state.jobs.lease(WorkerId("thief"), kinds=[JobKind.FILL], lease_s=LEASE_S) is None
        beat.cancel()
        assert queue.renewals <= 100, "without progress it is renewed when needed alone"


@virtual
async def test_progress_is_written_down_within_a_second(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        _, mine = await held(h)
        beat = asyncio.create_task(mine.beat())
        await asyncio.sleep(5)
        mine.done_tokens, mine.total_tokens = 512, 900
        await asyncio.sleep(1.01)
        job = await h.one_job()
        assert (job.done_tokens, job.total_tokens) == (512, 900)
        beat.cancel()


@virtual
async def test_a_state_out_of_order_for_a_while_does_not_end_the_work(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        queue, mine = await held(h)
        queue.down = True
        beat = asyncio.create_task(mine.beat())
        await asyncio.sleep(LEASE_S - 2)
        queue.down = False
        await asyncio.sleep(2)
        assert not beat.done()
        assert await h.state.jobs.lease(WorkerId("thief"), kinds=[JobKind.FILL], lease_s=LEASE_S) is None
        beat.cancel()


@virtual
async def test_the_work_ends_before_another_worker_may_have_the_job_unknown_to_us(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        queue, mine = await held(h)
        queue.down = True
        began_s = now_s()
        with pytest.raises(LeaseLost):
            await mine.beat()
        assert LEASE_S <= now_s() - began_s <= LEASE_S + 1.01
