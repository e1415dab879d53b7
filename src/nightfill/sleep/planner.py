"""The acting half of planning: looks at the state, decides by `plan`, and queues what is to be done."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from nightfill.errors import BudgetSpent
from nightfill.sleep.bill import waits
from nightfill.sleep.plan import Verdict, obsolete, plan
from nightfill.sleep.priority import value
from nightfill.state.jobs import JobKind, JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.engines.engine import Description
    from nightfill.sleep.bill import Bill
    from nightfill.sleep.plan import PlanLine
    from nightfill.sleep.priority import Policy
    from nightfill.state.access import AccessLog
    from nightfill.state.book import SourceBook
    from nightfill.state.budgets import BudgetBook
    from nightfill.state.engines import EngineBook
    from nightfill.state.jobs import JobQueue
    from nightfill.state.ledger import LedgerBook

_log = logging.getLogger(__name__)

OPEN_STATES = (JobState.QUEUED, JobState.LEASED, JobState.DEAD)
_MOST_JOBS = 20_000


class State(Protocol):
    """The books that background work needs."""

    @property
    def jobs(self) -> JobQueue:
        """What is to be done."""

    @property
    def book(self) -> SourceBook:
        """What is long-lived, and what of it is filled."""

    @property
    def access(self) -> AccessLog:
        """How it was used."""

    @property
    def budgets(self) -> BudgetBook:
        """What may be computed."""

    @property
    def ledger(self) -> LedgerBook:
        """What was computed, and what it saved."""

    @property
    def engines(self) -> EngineBook:
        """What engines were seen."""


async def plan_lines(
    state: State,
    descriptions: Sequence[Description],
    *,
    now_s: float,
    policy: Policy = value,
    default_ttl_s: float,
    bill: Bill | None = None,
) -> list[PlanLine]:
    """The plan for each engine, from what the state holds now; changes nothing, and needs no running engine."""
    contexts = await state.book.contexts()
    fills = await state.book.fills()
    found = await state.jobs.jobs(states=OPEN_STATES, limit=_MOST_JOBS)
    jobs = [job for job in found if job.kind is JobKind.FILL]
    usages = {(c.tenant, c.name): await state.access.usage(c.tenant, c.name, now_s=now_s) for c in contexts}
    lines: list[PlanLine] = []
    # Engines of one signature share their fills.
    unlike: dict[str | None, Description | None] = {}
    for known in descriptions:
        unlike.setdefault(known.signature, known)
    for description in unlike.values() or (None,):
        lines += plan(
            contexts, fills, usages, jobs, description, now_s=now_s, policy=policy, default_ttl_s=default_ttl_s
        )
    return await bill.withhold(lines, contexts, now_s=now_s) if bill is not None else lines


class Planner:
    """Queues jobs for what `plan` wants filled, and cancels those that nobody needs any more."""

    def __init__(
        self,
        state: State,
        *,
        clock: Callable[[], float],
        default_ttl_s: float,
        policy: Policy = value,
        bill: Bill | None = None,
    ) -> None:
        self._state = state
        self._clock = clock
        self._default_ttl_s = default_ttl_s
        self._policy = policy
        self._bill = bill

    async def tick(self, descriptions: Sequence[Description]) -> list[PlanLine]:
        """Plan once. May be repeated at any time: a target has one job, however often it is queued."""
        contexts = await self._state.book.contexts()
        jobs = await self._state.jobs.jobs(states=(JobState.QUEUED, JobState.LEASED), limit=_MOST_JOBS)
        notes = await self._state.engines.notes()
        known = {*(one.signature for one in descriptions), *(str(note.body.get("signature")) for note in notes)}
        for job in obsolete([job for job in jobs if job.kind is JobKind.FILL], contexts, known):
            await self._state.jobs.cancel(job.id)
            _log.info("job %d (%s): cancelled, its version or its engine is gone", job.id, job.label)
        lines = await plan_lines(
            self._state,
            descriptions,
            now_s=self._clock(),
            policy=self._policy,
            default_ttl_s=self._default_ttl_s,
            bill=self._bill,
        )
        return [await self._queued(line) for line in lines]

    async def _queued(self, line: PlanLine) -> PlanLine:
        if line.verdict is Verdict.SKIP or line.key is None:
            return line
        try:
            await self._state.jobs.enqueue(
                kind=JobKind.FILL,
                target=str(line.key),
                tenant=line.tenant,
                label=line.payer,
                priority=line.priority,
                total_tokens=line.total_tokens,
                user=line.user,
                needs=line.key.signature,
                reserve_tokens=line.missing_tokens,
            )
        except BudgetSpent as exc:
            # Somebody else was quicker to set the rest aside; the next look at the budgets shows it.
            return waits(line, exc)
        return line
