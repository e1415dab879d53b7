"""What budgets, jobs and ledger of one store must have in common at every instant."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from nightfill.state.budgets import DAY_S, BudgetLine, Period, Scope, scopes_of
from nightfill.state.jobs import JobState

if TYPE_CHECKING:
    from nightfill.state.ledger import LedgerLine
    from nightfill.state.state import State

UNFINISHED = (JobState.QUEUED, JobState.LEASED)


async def balanced(state: State, *, now_s: float) -> dict[tuple[Scope, Period], BudgetLine]:
    """Assert that what is set aside is what the unfinished jobs have, and what is spent what the ledger has.

    The lines, by scope and period.
    """
    aside: Counter[Scope] = Counter()
    for job in await state.jobs.jobs(limit=100_000):
        if job.state in UNFINISHED:
            for scope in scopes_of(job.tenant, job.user):
                aside[scope] += job.reserved_tokens
        else:
            assert job.reserved_tokens == 0
    month = Period.MONTH.days(now_s)
    ledger = await state.ledger.lines(since_day=month.start, until_day=month.stop - 1)
    lines = {(line.scope, line.period): line for line in await state.budgets.lines()}
    for period in Period:
        spent = _spent(ledger, period.days(now_s))
        for scope in aside.keys() | spent.keys():
            if aside[scope] or spent[scope]:
                assert (scope, period) in lines, f"{scope} is not listed"
        for (scope, of), line in lines.items():
            if of is period:
                assert (line.reserved, line.spent) == (aside[scope], spent[scope]), f"{scope}, {period}"
                assert line.resets_at_s == period.days(now_s).stop * DAY_S
    return lines


def _spent(ledger: list[LedgerLine], days: range) -> Counter[Scope]:
    spent: Counter[Scope] = Counter()
    for line in ledger:
        if line.day in days:
            for scope in scopes_of(line.tenant, line.user):
                spent[scope] += line.background_tokens
    return spent
