"""A look at all contexts, in steps, that finds the price of what the budget of all has left."""

from __future__ import annotations

import asyncio
import datetime
import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from nightfill.sleep.plan import is_new
from nightfill.sleep.price import Demand, left_today, refills
from nightfill.state.budgets import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nightfill.contexts.context import ContextName, Fingerprint, Tenant
    from nightfill.sleep.plan import PlanLine
    from nightfill.state.agenda import Agenda, Due
    from nightfill.state.budgets import BudgetBook, BudgetLine

EVERY_S: Final = 600.0
"""So old a price may be before it is looked for again: what contexts are worth changes hour by hour."""
STEP: Final = 500
STEPS: Final = 10
"""Of contexts at a time: one step, or so many while no price holds."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a fill must be worth while the budget of all is bounded."""

    score: float
    until_s: float
    """Unix seconds at which the budget begins anew."""

    def __str__(self) -> str:
        if self is UNKNOWN:
            return "first all contexts are looked at, to see what the budget of all is for"
        until = datetime.datetime.fromtimestamp(self.until_s, datetime.UTC).strftime("%H:%M UTC")
        return f"until {until} the budget of all is for what saves {self.score:.2g} s per s of filling"


UNKNOWN: Final = Price(math.inf, 0.0)
"""Before all contexts were looked at once."""


class Books(Protocol):
    """The books that a survey needs."""

    @property
    def agenda(self) -> Agenda:
        """What contexts there are."""

    @property
    def budgets(self) -> BudgetBook:
        """What may be computed."""


class Survey:
    """Belongs to one planner. A price holds from the end of one walk through all contexts to the end of the next."""

    def __init__(self, state: Books) -> None:
        self._state = state
        self._price: Price | None = None
        self._demand: Demand | None = None
        """Of the walk under way."""
        self._best: list[tuple[float, Tenant, ContextName, Fingerprint]] = []
        """A heap of what it found that is worth most and is not filled: its score, and where it is."""
        self._bound: tuple[float | None, ...] = ()
        """When the budgets begin anew, and their limits."""
        self._place = ""
        self._next_s = float("-inf")

    async def go_on(
        self, plan: Callable[[Sequence[Due]], Awaitable[Sequence[PlanLine]]], *, now_s: float
    ) -> tuple[Price | None, list[Due]]:
        """Walk on, if a price is to be found: the price that holds, None while there is no bound; and when a walk has
        ended, the contexts that are worth the new price, at most `STEP` of them. They are to be filled at once: what is
        not used becomes worth less by the minute, and would stay below any price that was found before.

        `plan` gives the lines of contexts at `now_s`.
        """
        budgets = await self._state.budgets.lines([Scope()])
        left = left_today(budgets, now_s)
        if left is None:
            self._price = self._demand = None
            return None, []
        left_tokens, reset_s = left
        # A price of last night is for hardly anything more, and one of another limit for something else.
        bound = (reset_s, *(budget.limit for budget in budgets))
        if self._bound != bound:
            self._bound = bound
            self._price = self._demand = None
        if self._demand is None and (self._price is None or not 0 < self._next_s - now_s <= EVERY_S):
            self._demand, self._place, self._best = Demand(left_tokens), "", []
        for _ in range(STEPS if self._price is None else 1):
            if self._demand is None:
                break
            await asyncio.sleep(0)  # whoever watches for live requests comes in between
            found, place = await self._state.agenda.after(self._place, limit=STEP)
            lines = await plan(found)
            want(self._demand, lines, now_s=now_s, reset_s=reset_s)
            self._keep_best(found, lines)
            self._place = place  # not before: a step that failed is made again, and none is counted twice
            if not place:
                price, self._demand = Price(self._demand.price(left_tokens), reset_s), None
                chosen = await self._chosen(price)
                self._price, self._next_s = price, now_s + EVERY_S
                return price, chosen
        return self._price or UNKNOWN, []

    def _keep_best(self, found: Sequence[Due], lines: Sequence[PlanLine]) -> None:
        scores: dict[tuple[Tenant, ContextName], float] = {}
        for line in lines:
            if is_new(line):
                name = (line.tenant, line.context)
                scores[name] = max(line.priority, scores.get(name, 0.0))
        for due in found:
            context = due.context
            score = scores.get((context.tenant, context.name))
            if score is not None:
                heapq.heappush(self._best, (score, context.tenant, context.name, context.current))
                if len(self._best) > STEP:
                    heapq.heappop(self._best)

    async def _chosen(self, price: Price) -> list[Due]:
        best, self._best = self._best, []
        chosen: list[Due] = []
        for score, tenant, name, version in best:
            if score >= price.score:
                # As they are by now: a walk may take minutes.
                having = await self._state.agenda.having(tenant, version)
                chosen += [due for due in having if due.context.name == name]
        return chosen


def price_of(lines: Sequence[PlanLine], budgets: Sequence[BudgetLine], *, now_s: float) -> Price | None:
    """The price if these are the lines of all contexts, and these the budgets of all; None: there is no bound."""
    left = left_today(budgets, now_s)
    if left is None:
        return None
    left_tokens, reset_s = left
    demand = Demand(left_tokens)
    want(demand, lines, now_s=now_s, reset_s=reset_s)
    return Price(demand.price(), reset_s)


def want(demand: Demand, lines: Sequence[PlanLine], *, now_s: float, reset_s: float) -> None:
    """Add what keeping all of these filled until `reset_s` asks for."""
    for line in lines:
        if line.case is None or line.lasts_until_s is None:
            continue
        from_s = max(now_s, line.lasts_until_s)
        whole = line.total_tokens or line.missing_tokens
        tokens = line.missing_tokens if line.lasts_until_s <= now_s else whole
        for score, fills in refills(line.case, from_s=from_s, reset_s=reset_s, extended=True):
            demand.add(math.inf if line.pinned else score, tokens, fills)
            if line.case.usage.last_access_s is None and not line.pinned:
                break  # what was never used is not filled again
            tokens = whole
