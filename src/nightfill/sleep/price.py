"""What a fill must be worth: the price at which what is wanted until the budget's reset just fits it. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from nightfill.sleep.history import HOUR_S
from nightfill.sleep.worth import worth
from nightfill.state.budgets import DAY_S, Period

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nightfill.sleep.worth import Case
    from nightfill.state.budgets import BudgetLine

_STEP: Final = math.log(1.02)
"""Scores within two percent are taken as one. So as much memory is enough for any number of contexts."""


class Demand:
    """What is wanted until the reset of a budget that has `left_tokens`. What alone needs more is not counted."""

    def __init__(self, left_tokens: float) -> None:
        self._left_tokens = left_tokens
        self._tokens: dict[int, float] = {}
        self._least: dict[int, float] = {}
        """By steps of the score: of all, and of the shortest."""

    def add(self, score: float, tokens: float, fills: float = 1.0) -> None:
        """So many fills of so many tokens, each worth `score`, which may be infinite. What is worth 0 is not wanted."""
        if score <= 0 or tokens > self._left_tokens:
            return
        step = math.floor(math.log(min(score, 1e300)) / _STEP)
        self._tokens[step] = self._tokens.get(step, 0.0) + tokens * fills
        self._least[step] = min(tokens, self._least.get(step, math.inf))

    def price(self, left_tokens: float | None = None) -> float:
        """Between the lowest score that the budget reaches, dearest first, and the highest that it does not; 0 if it
        reaches all. `left_tokens`: by now.

        Whoever fills only what scores as much spends what is left of the budget by its reset, on the best there will
        be, instead of at once on the best there is now. Where not even the first can be paid, the price is its score.
        """
        left = self._left_tokens if left_tokens is None else left_tokens
        reached: int | None = None
        for step in sorted(self._tokens, reverse=True):
            if reached is not None and self._least[step] > left:
                # In the middle, for scores move a little until they are looked at again.
                return math.exp((reached + step) / 2 * _STEP)
            reached = step
            left -= self._tokens[step]
            if left < 0:
                return math.exp(step * _STEP) * (1 - 1e-9)  # so that rounding does not lift it above the score
        return 0.0


def refills(case: Case, *, from_s: float, reset_s: float, extended: bool) -> Iterator[tuple[float, float]]:
    """What keeping a context filled from `from_s` until `reset_s` asks for: the score of each fill, and how many.

    `extended`: a use makes a fill last longer, so the next one is needed as probably as none comes; else each is.
    """
    step_s = max(case.ttl_s, float(HOUR_S))  # more often than in an hour, what is expected does not change
    fills = 1.0
    while from_s < reset_s:
        found = worth(case, start_s=from_s)
        yield found.score, fills
        fills = step_s / case.ttl_s * (1 - found.expected.probability if extended else 1.0)
        from_s += step_s


def left_today(budgets: Sequence[BudgetLine], now_s: float) -> tuple[float, float] | None:
    """Tokens that both budgets of a scope leave until the next midnight UTC, and when that is; None: no bound.

    What is left of a month is taken to be for each of its days alike.
    """
    today = int(now_s // DAY_S)
    left = [
        budget.left / (1 if budget.period is Period.DAY else len(range(today, Period.MONTH.days(now_s).stop)))
        for budget in budgets
        if budget.left is not None
    ]
    return (min(left), float((today + 1) * DAY_S)) if left else None
