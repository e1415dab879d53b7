"""The acting half of planning: looks at the state, decides by `plan`, and queues what is to be done."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from nightfill.errors import BudgetSpent
from nightfill.sleep.autoscale import PACE
from nightfill.sleep.bill import waits
from nightfill.sleep.description import SEEN_S, description_of
from nightfill.sleep.looks import looked
from nightfill.sleep.plan import Verdict, obsolete, plan
from nightfill.sleep.priority import value
from nightfill.sleep.speeds import ROWS, speeds_of
from nightfill.sleep.survey import price_of
from nightfill.sleep.worth import ALIKE
from nightfill.state.budgets import Scope
from nightfill.state.jobs import JobKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from nightfill.engines.engine import Description
    from nightfill.sleep.bill import Bill
    from nightfill.sleep.plan import PlanLine
    from nightfill.sleep.priority import Policy
    from nightfill.sleep.survey import Price, Survey
    from nightfill.state.access import Access, AccessLog
    from nightfill.state.agenda import Agenda, Due
    from nightfill.state.answers import AnswerBook
    from nightfill.state.book import SourceBook
    from nightfill.state.budgets import BudgetBook
    from nightfill.state.engines import EngineBook, EngineNote
    from nightfill.state.jobs import JobQueue
    from nightfill.state.ledger import LedgerBook

_log = logging.getLogger(__name__)

AT_ONCE: Final = 500
"""Contexts that one tick looks at: so it takes as long with a million of them as with a thousand."""
_LOOKED_AGAIN_AFTER_S: Final = 60.0
_ROWS_AGAIN_AFTER_S: Final = 60.0


class State(Protocol):
    """The books that background work needs."""

    @property
    def jobs(self) -> JobQueue:
        """What is to be done."""

    @property
    def agenda(self) -> Agenda:
        """What is to be looked at."""

    @property
    def book(self) -> SourceBook:
        """What is long-lived, and what of it is filled."""

    @property
    def access(self) -> AccessLog:
        """How it was used."""

    @property
    def answers(self) -> AnswerBook:
        """What was answered."""

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
    priced: bool = False,
) -> list[PlanLine]:
    """The plan for each engine, from what the state holds now; changes nothing, and needs no running engine.

    Reads all contexts, in steps: it is for people, and no worker waits for it. `priced`: see `survey`.
    """
    found = [due async for due in _all(state.agenda)]
    notes, rows = await state.engines.notes(), await state.access.recent(limit=ROWS)
    lines = _plan(found, descriptions, notes, rows, now_s=now_s, policy=policy, default_ttl_s=default_ttl_s)
    if bill is None:
        return lines
    price = price_of(lines, await state.budgets.lines([Scope()]), now_s=now_s) if priced else None
    return await bill.withhold(lines, [due.context for due in found], now_s=now_s, price=price)


async def _all(agenda: Agenda) -> AsyncIterator[Due]:
    place, begun = "", False
    seen = set()
    while place or not begun:
        begun = True
        found, place = await agenda.after(place, limit=AT_ONCE)
        for due in found:
            name = (due.context.tenant, due.context.name)
            if name not in seen:
                seen.add(name)
                yield due


def _plan(
    found: Sequence[Due],
    descriptions: Sequence[Description],
    notes: Sequence[EngineNote],
    rows: Sequence[Access],
    *,
    now_s: float,
    policy: Policy,
    default_ttl_s: float,
) -> list[PlanLine]:
    contexts = [due.context for due in found]
    usages = {(due.context.tenant, due.context.name): due.usage for due in found}
    fills = [fill for due in found for fill in due.fills]
    jobs = [job for due in found for job in due.jobs]
    lines: list[PlanLine] = []
    # Engines of one signature share their fills.
    unlike: dict[str | None, Description | None] = {}
    for known in descriptions:
        unlike.setdefault(known.signature, known)
    for description in unlike.values() or (None,):
        speeds = ALIKE
        if description is not None:
            speeds = speeds_of(rows, notes, model=description.model, signature=description.signature)
        lines += plan(
            *(contexts, fills, usages, jobs, description),
            now_s=now_s,
            policy=policy,
            default_ttl_s=default_ttl_s,
            speeds=speeds,
        )
    return lines


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
        survey: Survey | None = None,
        on_look: Callable[[Sequence[Due]], Awaitable[None]] | None = None,
    ) -> None:
        self._state = state
        self._on_look = on_look
        self._clock = clock
        self._default_ttl_s = default_ttl_s
        self._policy = policy
        self._bill = bill
        self._survey = survey
        self._signatures: frozenset[str] = frozenset()
        """For these all contexts were looked at, or are being."""
        self._place: str | None = None
        """Where the walk through all contexts is; None when there is none."""
        self._rows: Sequence[Access] = ()
        """Of the access log, for the speed of engines."""
        self._rows_at_s = float("-inf")

    async def tick(self, descriptions: Sequence[Description]) -> list[PlanLine]:
        """Look at what is due, and a step further at all the others when there are new engines. May be repeated at any
        time, by several workers: a target has one job, however often it is queued.

        `descriptions` are of the worker's own engines; it plans for those of others, too, as it may be the only one to
        hear of a change.
        """
        notes = await self._state.engines.notes()
        since_s = self._clock() - SEEN_S
        others = [description_of(note.body) for note in notes if PACE in note.body and note.seen_at_s > since_s]
        engines = [*descriptions, *(one for one in others if one is not None)]
        signatures = frozenset(engine.signature for engine in engines)
        if not signatures <= self._signatures:
            self._place = ""
        self._signatures = signatures
        price, chosen = await self._priced(engines, notes)
        found = await self._found(chosen)
        if not found:
            return []
        if self._on_look is not None:
            await self._on_look(found)
        known = {*signatures, *(str(note.body.get("signature")) for note in notes)}
        await self._cancel(found, known)
        lines = await self._lines(found, engines, notes)
        now_s = self._clock()
        if self._bill is not None:
            # Before all that is new was looked at once, nobody knows what has the first claim on a budget.
            crowded = len(found) >= AT_ONCE
            new = {(due.context.tenant, due.context.name) for due in found if due.changed} if crowded else ()
            contexts = [due.context for due in found]
            lines = await self._bill.withhold(
                lines,
                contexts,
                now_s=now_s,
                price=price,
                chosen={(due.context.tenant, due.context.name) for due in chosen},
                postponed=new,
            )
        lines = await self._queued(lines)
        await self._state.agenda.looked(looked(found, lines, now_s=now_s))
        return lines

    async def _priced(
        self, engines: Sequence[Description], notes: Sequence[EngineNote]
    ) -> tuple[Price | None, list[Due]]:
        if self._survey is None:
            return None, []
        return await self._survey.go_on(lambda found: self._lines(found, engines, notes), now_s=self._clock())

    async def _lines(
        self, found: Sequence[Due], engines: Sequence[Description], notes: Sequence[EngineNote]
    ) -> list[PlanLine]:
        now_s = self._clock()
        if abs(now_s - self._rows_at_s) > _ROWS_AGAIN_AFTER_S:  # the clock may be set back
            self._rows, self._rows_at_s = await self._state.access.recent(limit=ROWS), now_s
        return _plan(
            *(found, engines, notes, self._rows),
            now_s=now_s,
            policy=self._policy,
            default_ttl_s=self._default_ttl_s,
        )

    async def _found(self, chosen: Sequence[Due]) -> list[Due]:
        agenda = self._state.agenda
        found = {(due.context.tenant, due.context.name): due for due in await agenda.due(limit=AT_ONCE)}
        if self._place is not None and len(found) < AT_ONCE:
            more, place = await agenda.after(self._place, limit=AT_ONCE - len(found))
            self._place = place or None
            chosen = (*chosen, *more)
        for due in chosen:
            # What has changed is left to who finds it due: its mark would not tell that it changed again.
            if not due.changed:
                found.setdefault((due.context.tenant, due.context.name), due)
        return list(found.values())

    async def _cancel(self, found: Sequence[Due], signatures: set[str]) -> None:
        for due in found:
            # Another context may want the version in another form.
            for job in obsolete(due.jobs, [due.context], signatures) if not due.shared else ():
                await self._state.jobs.cancel(job.id)
                _log.info("job %d (%s): cancelled, its version or its engine is gone", job.id, job.label)

    async def _queued(self, lines: Sequence[PlanLine]) -> list[PlanLine]:
        """The lines, those with a job for what is to be filled. All are asked for at once, in their order."""
        done = await asyncio.gather(*map(self._enqueue, lines), return_exceptions=True)
        failed = [one for one in done if isinstance(one, BaseException)]
        if failed:
            raise failed[0]
        return [one for one in done if not isinstance(one, BaseException)]

    async def _enqueue(self, line: PlanLine) -> PlanLine:
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
            return waits(line, exc, until_s=self._clock() + _LOOKED_AGAIN_AFTER_S)
        return line
