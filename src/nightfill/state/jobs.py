"""Units of background work, and the queue that leases them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NewType, Protocol

from nightfill.state.budgets import BudgetRules

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

JobId = NewType("JobId", int)
WorkerId = NewType("WorkerId", str)


class JobKind(enum.StrEnum):
    """What a job does."""

    FILL = "fill"
    VERIFY = "verify"
    """Compare what a fill stored with what the engine computes."""
    DISTIL = "distil"
    """Make a context's distilled version."""
    PREDICT = "predict"
    """Foresee a context's questions."""
    ANSWER = "answer"
    """Prepare the answer to a question that was foreseen."""


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
    user: str = ""
    """Whose budget pays, within the tenant; empty for nobody's."""
    needs: str = ""
    """What a worker must have to do it: the signature that its engine computes. Empty: any will do."""
    reserved_tokens: int = 0
    """Of the budgets, still set aside for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a lease has computed since it began, in all. A total, so that telling it twice charges it once."""

    tokens: int = 0
    seconds: float = 0.0
    """Of an engine."""
    machine: str = ""
    """The kind of machine that it ran on, for its price."""


NO_WORK: Final = Work()
ASKED: Final = 1e9
"""Priority of what a person asked for: before all that a policy ranks, and at any hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRules:
    """What a queue goes by; the same for all its processes."""

    max_unfinished: int = 2_000_000
    """Then `enqueue` refuses."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Share of the background work by tenant, above 0; 1 for those not named."""
    budgets: BudgetRules = field(default_factory=BudgetRules)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDepth:
    """How much waits. Times are Unix seconds by the store's clock."""

    due: int
    """Jobs that could be leased now."""
    later: int
    """Jobs that wait for a retry."""
    leased: int
    tokens: int
    """Still to be computed, of all these, as far as known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """How many jobs do not go well."""

    failing: int
    """Unfinished ones that have failed since they last got on."""
    dead: int


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
        self,
        *,
        kind: JobKind,
        target: str,
        tenant: str,
        label: str,
        priority: float,
        total_tokens: int = 0,
        user: str = "",
        needs: str = "",
        reserve_tokens: int = 0,
    ) -> Job:
        """Queue a job, or return the unfinished one for the same kind and target with its priority set to ours, unless
        it is `ASKED` already.

        A dead job for the same target stays dead and is returned as it is: `retry` brings it back. A new job sets
        `reserve_tokens` aside in each of its budgets, in the same transition. Raises BudgetSpent, and nothing is
        queued, when one of them has less left; QueueFull.
        """

    async def lease(
        self,
        worker: WorkerId,
        *,
        kinds: Sequence[JobKind],
        lease_s: float,
        needs: Sequence[str] | None = None,
        max_tokens: int | None = None,
        min_priority: float | None = None,
    ) -> Lease | None:
        """Claim one due job, or one whose lease has expired, in one transition: two workers never hold the same job.

        Tenants take turns by what was leased to each, over its weight: start-time fair queueing, so that one who comes
        late neither waits for a long queue of another's, nor may make up for time when it asked for nothing, or could
        not be served for want of the right worker. Of a tenant, the highest priority comes first, older ones first
        among equals. `needs` None takes any job, else those that need nothing or one of these; jobs longer than
        `max_tokens`, and those of a priority below `min_priority`, are left alone. None when nothing is due.
        """

    async def renew(
        self,
        lease: Lease,
        *,
        lease_s: float,
        done_tokens: int,
        total_tokens: int,
        kept_tokens: int = 0,
        work: Work = NO_WORK,
    ) -> Lease:
        """Extend the lease from now and note progress.

        `kept_tokens` are those that outlive the worker; more than ever before forgives earlier failures and losses.
        What `work` has more than at the last call is charged to the budgets, out of what was set aside, and to the
        ledger: with this and each method below that takes it, in one transition with what else the method does.
        """

    async def complete(self, lease: Lease, *, outcome: str = "", note: str = "", work: Work = NO_WORK) -> None:
        """Mark done; `outcome`, one word of a few, is counted, and `note` kept with the job. What is still set aside
        in the budgets returns: so it does when a job is cancelled or dead.
        """

    async def count(self, kind: JobKind, outcome: str) -> None:
        """Count an outcome of such work that was done without a job."""

    async def outcomes(self, kind: JobKind) -> dict[str, int]:
        """How often each outcome was counted, ever."""

    async def release(self, lease: Lease, *, work: Work = NO_WORK) -> None:
        """Hand the job back unharmed, to be leased again at once: a shutdown, not a failure."""

    async def fail(self, lease: Lease, *, error: str, retry_in_s: float | None, work: Work = NO_WORK) -> None:
        """Count a failure: queued again not before so many seconds from now, or dead when that is None."""

    async def cancel(self, job_id: JobId) -> bool:
        """Cancel an unfinished job; its worker finds out at its next renewal. False when there is none."""

    async def cancel_target(self, *, kind: JobKind, target_prefix: str) -> int:
        """Cancel all unfinished jobs whose target starts so; the number cancelled. Also forgets dead ones."""

    async def retry(self, job_id: JobId) -> bool:
        """Bring a dead job back, its failures forgotten, what it still needs set aside again. False when there is none.

        Raises BudgetSpent.
        """

    async def depth(self, *, kinds: Sequence[JobKind] | None = None) -> QueueDepth:
        """How much waits, in time that does not depend on how much it is."""

    async def trouble(self) -> Trouble:
        """How many do not go well, in time that does not depend on how many there are."""

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
