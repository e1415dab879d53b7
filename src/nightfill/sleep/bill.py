"""What a plan may not do: fill what does not pay, and spend what a budget does not have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from nightfill.errors import BudgetSpent
from nightfill.ledger import day_of, does_not_pay, on_trial_since
from nightfill.sleep.plan import Verdict, Waits, is_new
from nightfill.state.agenda import POSTPONED_S
from nightfill.state.budgets import refuse_beyond, scopes_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from nightfill.config import PriceSettings
    from nightfill.contexts.context import Context, ContextName, Tenant
    from nightfill.sleep.plan import PlanLine
    from nightfill.sleep.survey import Price
    from nightfill.state.budgets import BudgetBook, BudgetLine, Scope
    from nightfill.state.ledger import LedgerBook

LOOK_EVERY_S: Final = 60.0
"""So long a context's verdict holds: its costs change slowly, and a stopped one would be looked up at each tick."""

VALUED_S: Final = 600.0
"""So long those that wait for the same budget take to come when it begins anew, the most valuable first."""
POSTPONED_VALUED_S: Final = 1e6
"""As wide as it may be, since it costs no time."""


class Books(Protocol):
    """The books that a bill needs."""

    @property
    def budgets(self) -> BudgetBook:
        """What may be computed."""

    @property
    def ledger(self) -> LedgerBook:
        """What was computed, and what it saved."""


@dataclass(frozen=True, slots=True)
class _Trial:
    context: Context
    until_s: float
    why: str | None


class Bill:
    """Withholds lines of a plan. Jobs that are queued already go on. For one task at a time."""

    def __init__(self, books: Books, *, prices: PriceSettings, stop_after_s: float) -> None:
        self._books = books
        self._prices = prices
        self._stop_after_s = stop_after_s
        self._trials: dict[tuple[Tenant, ContextName], _Trial] = {}

    async def withhold(
        self,
        lines: Sequence[PlanLine],
        contexts: Sequence[Context],
        *,
        now_s: float,
        price: Price | None = None,
        chosen: Collection[tuple[Tenant, ContextName]] = (),
        postponed: Collection[tuple[Tenant, ContextName]] = (),
    ) -> list[PlanLine]:
        """The lines in their order, with verdict SKIP and the reason where something is in the way.

        What is worth less than `price` leaves the budget to what will be worth more, but for what is pinned, and those
        `chosen`, which were found to be worth it.
        What comes first has the first claim on a budget; what does not fit into it leaves room for what does. Those
        `postponed` have none yet.
        """
        by_name = {(context.tenant, context.name): context for context in contexts}
        self._trials = {name: trial for name, trial in self._trials.items() if name in by_name}
        paying = []
        for line in lines:
            why = None
            if is_new(line):
                name = (line.tenant, line.context)
                why = await self._unpaid(by_name[name], now_s) or _too_dear(line, None if name in chosen else price)
            paying.append(line if why is None else replace(line, verdict=Verdict.SKIP, why=why))
        return await self._affordable(paying, postponed)

    async def _unpaid(self, context: Context, now_s: float) -> str | None:
        if context.pinned:
            return None
        name = (context.tenant, context.name)
        known = self._trials.get(name)
        if known is None or known.context.updated_at_s != context.updated_at_s or now_s >= known.until_s:
            known = self._trials[name] = _Trial(context, now_s + LOOK_EVERY_S, await self._judged(context, now_s))
        return known.why

    async def _judged(self, context: Context, now_s: float) -> str | None:
        since_s = on_trial_since(context)
        if self._stop_after_s <= 0 or now_s - since_s < self._stop_after_s:
            return None
        lines = await self._books.ledger.lines(
            since_day=day_of(since_s), until_day=day_of(now_s), tenant=context.tenant, context=context.name
        )
        figures = does_not_pay(lines, age_s=now_s - since_s, stop_after_s=self._stop_after_s, prices=self._prices)
        return f"stopped: {figures}; pin it, or fill it by name, to fill it all the same" if figures else None

    async def _affordable(
        self, lines: Sequence[PlanLine], postponed: Collection[tuple[Tenant, ContextName]]
    ) -> list[PlanLine]:
        wanted = list(dict.fromkeys(scope for line in lines if is_new(line) for scope in _scopes(line)))
        if not wanted:
            return list(lines)
        budgets: dict[Scope, list[BudgetLine]] = {scope: [] for scope in wanted}
        for budget in await self._books.budgets.lines(wanted):
            if budget.limit is not None:
                budgets[budget.scope].append(budget)
        return [
            _afforded(line, budgets, postponed=(line.tenant, line.context) in postponed) if is_new(line) else line
            for line in lines
        ]


def _too_dear(line: PlanLine, price: Price | None) -> str | None:
    if price is None or line.pinned or line.priority >= price.score:
        return None
    return f"not filled now: {price}; {line.why}"


def waits(line: PlanLine, error: BudgetSpent, *, until_s: float, scope: Scope | None = None) -> PlanLine:
    """The line, not to be filled before its budget has more."""
    wait = Waits(until_s=until_s, valued_s=VALUED_S, scope=scope)
    return replace(line, verdict=Verdict.SKIP, why=f"waits for budget: {error}", waits=wait)


def _afforded(line: PlanLine, budgets: Mapping[Scope, list[BudgetLine]], *, postponed: bool) -> PlanLine:
    """The line, with what it needs taken from its budgets; or, not to be filled, why it cannot be."""
    mine = [budget for scope in _scopes(line) for budget in budgets[scope]]
    if mine and postponed:
        wait = Waits(until_s=POSTPONED_S, valued_s=POSTPONED_VALUED_S)
        return replace(line, verdict=Verdict.SKIP, why="waits until all that is new was looked at", waits=wait)
    try:
        refuse_beyond(mine, line.missing_tokens)
    except BudgetSpent as exc:
        short = max((one for one in mine if (one.left or 0) < line.missing_tokens), key=lambda one: one.resets_at_s)
        return waits(line, exc, until_s=exc.resets_at_s, scope=short.scope)
    for scope in _scopes(line):
        budgets[scope][:] = [
            replace(budget, reserved=budget.reserved + line.missing_tokens) for budget in budgets[scope]
        ]
    return line


def _scopes(line: PlanLine) -> tuple[Scope, ...]:
    return scopes_of(line.tenant, line.user)
