"""A lease that is kept alive while the work on its job goes on."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nightfill.errors import LeaseLost, NightfillError, StateUnavailable
from nightfill.sleep.stopping import first_of
from nightfill.state.jobs import Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from nightfill.state.jobs import Job, JobQueue, Lease

T = TypeVar("T")

_log = logging.getLogger(__name__)

RENEWALS_PER_LEASE: Final = 3
PROGRESS_EVERY_S: Final = 1.0
"""How often progress is written down, for those who watch."""


async def while_held(held: HeldLease, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, the lease being renewed meanwhile. Raises LeaseLost, and what `work` raises of ours."""
    failure: BaseException | None = None
    task: asyncio.Task[T] | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(work, name="job")
            beat = tasks.create_task(held.beat(), name="lease")
            task.add_done_callback(lambda _: beat.cancel())
    except* NightfillError as group:
        failure = first_of(group)
    if failure is not None:
        raise failure
    assert task is not None
    return task.result()


class HeldLease:
    """Renews one lease and notes the progress of its job. `clock` is a steady one."""

    def __init__(
        self,
        jobs: JobQueue,
        lease: Lease,
        *,
        lease_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._jobs = jobs
        self._lease_s = lease_s
        self._clock = clock
        self._sleep = sleep
        self._ours_until_s = clock() + lease_s
        self._renew_by_s = self._ours_until_s - lease_s / RENEWALS_PER_LEASE
        self._renewing = asyncio.Lock()
        self.lease = lease
        self.done_tokens = lease.job.done_tokens
        self.kept_tokens = 0
        self.total_tokens = lease.job.total_tokens
        self.work = self._told = Work()

    @property
    def job(self) -> Job:
        """The job, as of the last renewal."""
        return self.lease.job

    def begin_on(self, machine: str) -> None:
        """Note the kind of machine that the job is done on."""
        self.work = replace(self.work, machine=machine)

    def computed(self, tokens: int, seconds: float) -> None:
        """Note what an engine computed for the job, in so many seconds of its own."""
        self.work = replace(self.work, tokens=self.work.tokens + tokens, seconds=self.work.seconds + seconds)

    async def renew(self) -> None:
        """Extend the lease and write down the progress. Raises LeaseLost.

        While the state is out of order the work goes on, up to the moment from which another worker may have the job.
        """
        async with self._renewing:
            asked_at_s, work = self._clock(), self.work
            try:
                self.lease = await self._jobs.renew(
                    self.lease,
                    lease_s=self._lease_s,
                    done_tokens=self.done_tokens,
                    total_tokens=self.total_tokens,
                    kept_tokens=self.kept_tokens,
                    work=work,
                )
            except StateUnavailable as exc:
                if self._clock() >= self._ours_until_s:
                    raise LeaseLost(f"job {self.job.id}: its lease ran out while the state was out of order") from exc
                _log.warning("job %d: lease not renewed: %s", self.job.id, exc)
            else:
                self._told = work
                self._ours_until_s = asked_at_s + self._lease_s
                self._renew_by_s = self._ours_until_s - self._lease_s / RENEWALS_PER_LEASE

    async def beat(self) -> None:
        """Renew until cancelled: sooner when there is progress. Ends by LeaseLost alone."""
        every_s = self._lease_s / RENEWALS_PER_LEASE
        while True:
            await self._sleep(min(every_s, PROGRESS_EVERY_S))
            told = (self.job.done_tokens, self.job.total_tokens, self._told)
            if told != (self.done_tokens, self.total_tokens, self.work) or self._clock() + every_s >= self._renew_by_s:
                await self.renew()
