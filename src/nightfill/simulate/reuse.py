"""How soon blocks come back, learned from those that did and those that did not, and what keeping one is worth by that.

Blocks fall into groups (`GROUPS`) by what is known of each: how often it was used, and whether it is a partial last
block. Of each group it is counted, by age since the last use, how many came back at that age, how many grew older, and
how many are of that age now. Ages double, from 1 second to a day and a half, so that nothing depends on how fast a
service is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_USES: Final = 4
"""So many uses or more make one group."""
GROUPS: Final = 2 * _USES
AGES: Final = 18
_EDGES_S: Final = (0.0, *(2.0**age for age in range(AGES)))
"""Where each age begins, and where the last ends."""
_PRIOR: Final = 0.1
"""Part of the blocks that come back before they are twice as old, taken for granted until something is known.

The same at all ages: what was used longer ago then is worth less, so that a store which knows nothing is LRU."""


def group_of(uses: int, *, partial: bool) -> int:
    """The group of a block that was used so often, at least once."""
    return 2 * (min(uses, _USES) - 1) + partial


def rates(returned: Sequence[int], aged: Sequence[int], waiting: Sequence[int]) -> list[float]:
    """The most uses per second of keeping a block that any date of giving it up can give, for each age of one group.

    The counts, at least 0, are by age: how many came back at it, how many grew older, how many are of it now.

    It is Gittins' index of a block that waits for its next use (Gittins 1979; with ages and groups learned as in
    Beckmann, Chen, Cidon: LHD, NSDI 2018). A store that keeps what has the highest one spends its space where it
    serves most, which need not be what was used last: who writes to a chat seldom does so within seconds.
    """
    found: list[float] = []
    later: list[tuple[float, float, float]] = []
    """Runs of ages, the next last: uses and seconds of a block that begins it, and how likely it is to see its end."""
    for age in range(AGES - 1, -1, -1):
        back = (returned[age] + _PRIOR) / (returned[age] + aged[age] + waiting[age] + 1)
        uses, seconds, stays = back, (_EDGES_S[age + 1] - _EDGES_S[age]) * (1 - back / 2), 1 - back
        while later and later[-1][0] * seconds > uses * later[-1][1]:
            # what comes next is better than what is here: whoever keeps a block here keeps it until then
            more_uses, more_seconds, more_stays = later.pop()
            uses, seconds, stays = uses + stays * more_uses, seconds + stays * more_seconds, stays * more_stays
        later.append((uses, seconds, stays))
        found.append(uses / seconds)
    found.reverse()
    return found


@dataclass(slots=True, eq=False)
class Cohort:
    """What one request used: blocks that grow older together."""

    at_s: float
    age: int = 0
    waiting: list[int] = field(default_factory=lambda: [0] * GROUPS)
    """Of each group, those that were not used since."""


class Reuse:
    """The counts. Time must not go back. Not thread-safe."""

    def __init__(self) -> None:
        self._returned = [[0] * AGES for _ in range(GROUPS)]
        self._aged = [[0] * AGES for _ in range(GROUPS)]
        self._waiting = [[0] * AGES for _ in range(GROUPS)]
        self._cohorts: list[deque[Cohort]] = [deque() for _ in range(AGES)]
        """By age, oldest first. The last age never ends."""

    def cohort(self, now_s: float) -> Cohort:
        """Let time pass until `now_s`, and begin the cohort of a request."""
        for age in range(AGES - 1):
            cohorts = self._cohorts[age]
            while cohorts and now_s - cohorts[0].at_s >= _EDGES_S[age + 1]:
                self._cohorts[age + 1].append(self._older(cohorts.popleft()))
        new = Cohort(now_s)
        self._cohorts[0].append(new)
        return new

    def used(self, cohort: Cohort, group: int) -> None:
        """A block of this group, used last with `cohort`, is used again."""
        self._returned[group][cohort.age] += 1
        self._waiting[group][cohort.age] -= 1
        cohort.waiting[group] -= 1

    def waits(self, cohort: Cohort, group: int) -> None:
        """A block that is now of this group was used with `cohort`."""
        self._waiting[group][cohort.age] += 1
        cohort.waiting[group] += 1

    def rates(self) -> list[list[float]]:
        """`rates` of each group."""
        return [rates(*counts) for counts in zip(self._returned, self._aged, self._waiting, strict=True)]

    def _older(self, cohort: Cohort) -> Cohort:
        for group, count in enumerate(cohort.waiting):
            self._aged[group][cohort.age] += count
            self._waiting[group][cohort.age] -= count
            self._waiting[group][cohort.age + 1] += count
        cohort.age += 1
        return cohort
