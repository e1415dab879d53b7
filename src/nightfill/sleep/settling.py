"""How a job ended, written down: for good, to be tried again, or handed back."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from nightfill.errors import StateError
from nightfill.sleep.duty import Done
from nightfill.sleep.fill import Filled, Gone, Stopped
from nightfill.sleep.retry import Failure, GiveUp, Retry, RetryPolicy, after_failure
from nightfill.state.jobs import JobKind

if TYPE_CHECKING:
    from nightfill.sleep.fill import Outcome
    from nightfill.sleep.lease import HeldLease
    from nightfill.state.jobs import JobQueue

_log = logging.getLogger(__name__)

_WITHIN_S: Final = 5.0
_FLEETING: Final = (JobKind.VERIFY, JobKind.PREDICT, JobKind.ANSWER)
"""Their jobs are never dead, but end in failure: a dead one would end all further looks at the same target."""


async def settle(jobs: JobQueue, held: HeldLease, outcome: Outcome | Done, retry: RetryPolicy) -> None:
    """Write down how it ended. When that cannot be, the lease expires and the job is leased again."""
    lease, job, work = held.lease, held.job, held.work
    try:
        async with asyncio.timeout(_WITHIN_S):
            match outcome:
                case Filled():
                    await jobs.complete(lease, work=work)
                    _log.info(
                        "job %d (%s): ready, %d tokens, %d computed now, %.2f engine seconds",
                        job.id, job.label, outcome.tokens, outcome.computed, outcome.seconds,
                    )  # fmt: skip
                case Done():
                    await jobs.complete(lease, outcome=outcome.outcome, note=outcome.note, work=work)
                    _log.info("job %d (%s): %s", job.id, job.label, outcome.note)
                case Stopped():
                    await jobs.release(lease, work=work)
                    _log.info("job %d (%s): handed back at %d tokens", job.id, job.label, held.kept_tokens)
                case Gone():
                    await held.renew()  # what it computed until then is charged
                    await jobs.cancel(job.id)
                    _log.info("job %d (%s): cancelled: %s", job.id, job.label, outcome.reason)
                case Failure():
                    await _fail(jobs, held, outcome, retry)
    except (StateError, TimeoutError) as exc:
        _log.warning("job %d (%s): its end was not written down: %s", job.id, job.label, exc)


async def _fail(jobs: JobQueue, held: HeldLease, failure: Failure, retry: RetryPolicy) -> None:
    job = held.job
    match after_failure(job.failures + 1, failure, retry):
        case Retry(in_s=in_s):
            await jobs.fail(held.lease, error=failure.message, retry_in_s=in_s, work=held.work)
            _log.warning("job %d (%s): again in %.1f s: %s", job.id, job.label, in_s, failure.message)
        case GiveUp() if job.kind in _FLEETING:
            await jobs.complete(held.lease, outcome="failed", note=failure.message, work=held.work)
            _log.warning("job %d (%s): not done: %s", job.id, job.label, failure.message)
        case GiveUp():
            await jobs.fail(held.lease, error=failure.message, retry_in_s=None, work=held.work)
            _log.error("job %d (%s): given up: %s", job.id, job.label, failure.message)
