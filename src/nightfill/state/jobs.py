"""Units of background work, and the queue that leases them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

JobId = NewType("JobId", int)
WorkerId = NewType("WorkerId", str)


class JobKind(enum.StrEnum):
    """What a job does."""

    FILL = "fill"
    VERIFY = "verify"
    """Compare what a fill stored with what the engine computes."""


class JobState(enum.StrEnum):
    """`queued -> leased -> done`; a failure goes back to queued with a later `not_before_s`, or to dead."""

    QUEUED = "queued"
    LEASED = "leased"
    DONE = "done"
    DEAD = "dead"
    """Given up after its retries; kept so that somebody looks at it."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One unit of background work. Times are Unix seconds by the store's clock."""

    id: JobId
    kind: JobKind
    target: str
    """What it works on; the text of a `FillKey`. At most one unfinished job per (kind, target)."""
    tenant: str
    label: str
    """What people call it: the context's name."""
    priority: float
    """Higher runs earlier."""
    state: JobState
    attempts: int
    """Leases so far; also the fencing number of the current lease."""
    failures: int
    """Failed attempts since the store last got more of it; a lease lost with its worker is not one."""
    lost: int
    """Leases that ended because their worker fell silent, since the store last got more of it. Dead at a bound."""
    not_before_s: float
    done_tokens: int
    total_tokens: int
    worker: WorkerId | None
    lease_expires_at_s: float | None
    error: str
    created_at_s: float
    updated_at_s: float
    note: str = ""
    """What came of it, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work on one job until it expires. `fence` makes an old holder's writes fail."""

    job: Job
    worker: WorkerId
    fence: int
    expires_at_s: float


class JobQueue(Protocol):
    """Leased, prioritised, resumable jobs.

    All methods are atomic and may be called from several processes at once. Methods that take a `Lease` raise
    LeaseLost when another worker has the job by now, or when it was cancelled; StateUnavailable when the store fails.
    """

    async def enqueue(
        self, *, kind: JobKind, target: str, tenant: str, label: str, priority: float, total_tokens: int = 0
    ) -> Job:
        """Queue a job, or return the unfinished one for the same kind and target with its priority raised to ours.

        A dead job for the same target stays dead and is returned as it is: `retry` brings it back.
        """

    async def lease(self, worker: WorkerId, *, kinds: Sequence[JobKind], lease_s: float) -> Lease | None:
        """Claim the due job of the highest priority (older first among equals), or one whose lease has expired.

        One statement claims and leases, so two workers never hold the same job. None when nothing is due.
        """

    async def renew(
        self, lease: Lease, *, lease_s: float, done_tokens: int, total_tokens: int, kept_tokens: int = 0
    ) -> Lease:
        """Extend the lease from now and note progress.

        `kept_tokens` are those that outlive the worker; more than ever before forgives earlier failures and losses.
        """

    async def complete(self, lease: Lease, *, outcome: str = "", note: str = "") -> None:
        """Mark done; `outcome`, one word of a few, is counted, and `note` kept with the job."""

    async def count(self, kind: JobKind, outcome: str) -> None:
        """Count an outcome of such work that was done without a job."""

    async def outcomes(self, kind: JobKind) -> dict[str, int]:
        """How often each outcome was counted, ever."""

    async def release(self, lease: Lease) -> None:
        """Hand the job back unharmed, to be leased again at once: a shutdown, not a failure."""

    async def fail(self, lease: Lease, *, error: str, retry_at_s: float | None) -> None:
        """Count a failure: queued again not before `retry_at_s`, or dead when that is None."""

    async def cancel(self, job_id: JobId) -> bool:
        """Cancel an unfinished job; its worker finds out at its next renewal. False when there is none."""

    async def cancel_target(self, *, kind: JobKind, target_prefix: str) -> int:
        """Cancel all unfinished jobs whose target starts so; the number cancelled. Also forgets dead ones."""

    async def retry(self, job_id: JobId) -> bool:
        """Bring a dead job back, its failures forgotten. False when there is none."""

    async def holders(self) -> list[WorkerId]:
        """Workers that hold leases, expired ones too."""

    async def reclaim(self, worker: WorkerId) -> int:
        """Free at once what a worker holds that is known to be gone, each counted as lost; the number freed."""

    async def get(self, job_id: JobId) -> Job | None:
        """The job, or None."""

    async def jobs(self, *, states: Sequence[JobState] | None = None, limit: int = 1000) -> list[Job]:
        """Jobs by descending priority, then by age."""

    async def prune(self, *, older_than_s: float) -> int:
        """Drop done and cancelled jobs not touched for so many seconds; the number dropped."""
