"""How often a context will be used, from how often it was: pure functions of its accesses by hour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nightfill.state.access import Usage

HOUR_S: Final = 3600
LATELY: Final = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""What the hour that has begun and those before it weigh in how often a context is used *now*."""
ALIKE_DAYS: Final = (1, 2, 3, 4, 5, 6, 7, 14, 21, 28)
"""The past days that today is compared with: each of the last seven, and the same weekday of the weeks before."""
ONE_USE: Final = 1.0
"""Where both now and then are silent, the past is right; so many uses make a difference."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What is expected of a span of time."""

    uses: float
    probability: float
    """Of at least one use."""


def expected_uses(usage: Usage, *, start_s: float, horizon_s: float, now_s: float, since_s: float) -> Expected:
    """What is expected from `start_s`, which is not before `now_s`, for `horizon_s` seconds, above 0.

    `since_s` is since when the context exists: earlier hours say nothing, later ones without an access say that there
    was none. In its first half hour the rest of it counts as silent: two uses in a minute do not make 120 in an
    hour. All in Unix seconds.

    Each past day tells how a level of use like that of now went on: `then` is its level at this time of day, `went`
    what followed in the span asked for. The expectation is the mean of what followed, in proportion to the level now
    over the mean level then: so both the level of now and the shape of the day count. One more day, on which nothing
    changes, stands for what the past does not tell, and bounds the proportion. While there is no past day, so does one
    that is as today on average: so what was used today and is silent is expected to be used about once.
    """
    get = usage.hours.get
    hour, part = int(now_s // HOUR_S), now_s % HOUR_S / HOUR_S
    known_hours = (now_s - since_s) / HOUR_S
    span, uses = part, get(hour, 0) * LATELY[0]
    for back in range(1, len(LATELY)):
        if known_hours <= part + back - 1:
            break
        span += LATELY[back]
        uses += LATELY[back] * get(hour - back, 0)
    span = max(span, LATELY[1])
    level = uses / span * (horizon_s / HOUR_S)
    end_s = start_s + horizon_s
    asked = [
        (of, (min(end_s, (of + 1) * HOUR_S) - max(start_s, of * HOUR_S)) / HOUR_S)
        for of in range(int(start_s // HOUR_S), int(-(-end_s // HOUR_S)))
    ]
    days, went, then, alike, again = 1, level, level, 1, int(level > 0)
    for day in ALIKE_DAYS:
        back = 24 * day
        if known_hours < back:
            break
        followed = sum([share * get(of - back, 0) for of, share in asked])
        before = part * get(hour - back, 0) + sum(
            [weight * get(hour - back - ago, 0) for ago, weight in enumerate(LATELY) if ago]
        )
        days += 1
        went += followed
        then += before / span * (horizon_s / HOUR_S)
        if (before > 0) == (level > 0):
            alike += 1
            again += followed > 0
    if days == 1:
        usual = usage.accesses_7d / max(known_hours, LATELY[1]) * (horizon_s / HOUR_S)
        days, went, then = 2, went + usual, then + usual
    expected = went / days * (level + ONE_USE) / (then / days + ONE_USE)
    return Expected(expected, min(expected, again / alike))
