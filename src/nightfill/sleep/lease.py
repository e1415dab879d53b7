"""A lease that is kept alive while the work on its job goes on."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nightfill.errors import LeaseLost, StateUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nightfill.state.jobs import Job, JobQueue, Lease

_log = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3


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
        self._renewing = asyncio.Lock()
        self.lease = lease
        self.done_tokens = lease.job.done_tokens
        self.kept_tokens = 0
        self.total_tokens = lease.job.total_tokens

    @property
    def job(self) -> Job:
        """The job, as of the last renewal."""
        return self.lease.job

    async def renew(self) -> None:
        """Extend the lease and write down the progress. Raises LeaseLost.

        While the state is out of order the work goes on, up to the moment from which another worker may have the job.
        """
        async with self._renewing:
            asked_at_s = self._clock()
            try:
                self.lease = await self._jobs.renew(
                    self.lease,
                    lease_s=self._lease_s,
                    done_tokens=self.done_tokens,
                    total_tokens=self.total_tokens,
                    kept_tokens=self.kept_tokens,
                )
            except StateUnavailable as exc:
                if self._clock() >= self._ours_until_s:
                    raise LeaseLost(f"job {self.job.id}: its lease ran out while the state was out of order") from exc
                _log.warning("job %d: lease not renewed: %s", self.job.id, exc)
            else:
                self._ours_until_s = asked_at_s + self._lease_s

    async def beat(self) -> None:
        """Renew until cancelled. Ends by LeaseLost alone."""
        while True:
            await self._sleep(self._lease_s / RENEWALS_PER_LEASE)
            await self.renew()
