"""What no planner can exceed, whatever it knows of the future.

A planner chooses for each context `i`, of `L_i` tokens, the windows in which to fill it. Let `served_i` be the uses in
windows that some fill of it serves, and `fills_i` their number: it saves the sum of `L_i * served_i`, and its budget
demands that the sum of `L_i * fills_i` over a day is at most `B`. So over the `D` days of the trace that sum is at most
`D * B`, and for any price `p >= 0`

    saved <= sum_i L_i * served_i + p * (D * B - sum_i L_i * fills_i) = sum_i L_i * (served_i - p * fills_i) + p * D * B

whatever the planner does. The right side falls apart into one problem per context, each solved exactly by going
backwards through the windows: let `best(w)` be the most that `served_i - p * fills_i` can be from fills in window `w`
or later, none of which overlaps another,

    best(w) = max(best(w + 1), uses in w + 1 .. w + lasts - p + best(w + lasts)).

Fills that overlap cannot do better: put the later one off until the earlier one ends. It serves what it served before
and was not served by the other, at the same price, and all after it are put off likewise; what would begin after the
trace is left out. (Only a price that differs between days could forbid this, so there is one for all days.)

Each price gives a valid bound (weak duality); the smallest of those that were tried is taken. The slack of the machines
is left out, and the days' budgets are thrown together: leaving out constraints can only raise what is possible, so it
remains a bound. How close it is shows a schedule that knows the future and obeys all constraints (`clairvoyant`).
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.simulate.fleet import Fleet
    from nightfill.simulate.rates import Client

_STEP: Final = 1.02
_MOST: Final = 1500
"""Prices go from 1 to 1.02 ** 1500, about 8e12 uses per fill."""


class Bound:
    """Bounds for fleets that differ in lengths and budgets, but not in clients nor in how long a fill lasts."""

    def __init__(self, clients: Sequence[Client], lasts: int) -> None:
        self._sums = [[0, *accumulate(client.uses)] for client in clients]
        self._lasts = lasts
        self._known: dict[int, list[float]] = {}

    def tokens(self, fleet: Fleet) -> int:
        """Prefill tokens that no planner can save more of."""
        budget = fleet.day_tokens * fleet.days

        def at(step: int) -> float:
            best = zip(fleet.tokens, self._best(step), strict=True)
            return sum(length * value for length, value in best) + _STEP**step * budget

        return math.ceil(min(at(_lowest(at, _MOST)), at(0), self._all(fleet)))

    def _all(self, fleet: Fleet) -> float:
        """Every use but those of window 0: no fill is ready by then."""
        return sum(length * (sums[-1] - sums[1]) for length, sums in zip(fleet.tokens, self._sums, strict=True))

    def _best(self, step: int) -> list[float]:
        if step not in self._known:
            self._known[step] = [best(sums, _STEP**step, self._lasts) for sums in self._sums]
        return self._known[step]


def best(sums: Sequence[int], price: float, lasts: int) -> float:
    """The most that served uses less `price` per fill can be; `sums[w]` are the uses before window `w`."""
    windows = len(sums) - 1
    values = [0.0] * (windows + lasts + 1)
    for window in range(windows - 2, -1, -1):
        ends = window + 1 + lasts
        fill = sums[min(ends, windows)] - sums[window + 1] - price + values[window + lasts]
        keep = values[window + 1]
        values[window] = max(fill, keep)
    return values[0]


def _lowest(function: Callable[[int], float], most: int) -> int:
    """Where a convex function of 0..most is lowest: a bound on its slope's sign halves the rest each time."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if function(middle) <= function(middle + 1):
            high = middle
        else:
            low = middle + 1
    return low
