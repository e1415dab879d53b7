"""What a fill is worth: the prefill seconds that it is expected to save, per second of background work. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.sleep.history import HOUR_S, expected_uses

if TYPE_CHECKING:
    from nightfill.sleep.history import Expected
    from nightfill.state.access import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Tokens per second."""

    prefill: float
    """Of a serving engine that computes a prompt."""
    fill: float
    """Of background work."""
    restore: float
    """Of a serving engine that loads what is stored."""


FARTHEST_S: Final = 86400.0
"""So far ahead is looked: what comes later is decided upon again before."""
ALIKE: Final = Speeds(prefill=1.0, fill=1.0, restore=float("inf"))
"""While nothing has been measured: scores are uses then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What may be known about a context when it is decided whether to fill it."""

    usage: Usage
    since_s: float
    """Since when it exists. Unix seconds, as all times here."""
    put_at_s: float
    """When somebody gave it its content: the stand-in for a first use."""
    now_s: float
    ttl_s: float
    """So long a fill lasts."""
    tokens: int = 1
    stored_tokens: int = 0
    """What a fill would not have to compute again."""
    speeds: Speeds = ALIKE


@dataclass(frozen=True, slots=True)
class Worth:
    """Of one fill."""

    expected: Expected
    """Uses while it lasts."""
    saved_s: float
    """Engine seconds that these would take longer without it."""
    fill_s: float
    """Engine seconds of background work."""

    @property
    def score(self) -> float:
        """Seconds saved per second of background work; infinite when there is nothing left to compute."""
        return self.saved_s / self.fill_s if self.fill_s else float("inf")


def worth(case: Case, *, start_s: float | None = None, horizon_s: float | None = None) -> Worth:
    """Of a fill that is ready at `start_s` (None for now) and counted for `horizon_s` (None for as long as it lasts, or
    `FARTHEST_S`).

    A context that was put and not used since is expected to be used once, the less the longer that does not happen:
    somebody meant to use it.
    """
    start_s = case.now_s if start_s is None else start_s
    expected = expected_uses(
        case.usage,
        start_s=start_s,
        horizon_s=min(case.ttl_s, FARTHEST_S) if horizon_s is None else horizon_s,
        now_s=case.now_s,
        since_s=case.since_s,
    )
    uses = expected.uses
    if case.usage.last_access_s is None or case.usage.last_access_s < case.put_at_s:
        uses += 1 / (1 + max(0.0, case.now_s - case.put_at_s) / HOUR_S)
    saved_s = uses * case.tokens * max(0.0, 1 / case.speeds.prefill - 1 / case.speeds.restore)
    return Worth(expected, saved_s, (case.tokens - case.stored_tokens) / case.speeds.fill)
