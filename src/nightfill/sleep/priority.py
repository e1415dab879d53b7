"""How much a fill is worth, as pure functions of how its context was used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightfill.state.access import Usage


@dataclass(frozen=True, slots=True)
class Priority:
    """A score, higher first, and why in a few words."""

    score: float
    why: str


class Policy(Protocol):
    """`put_at_s` is when somebody gave the context its content: the stand-in for a first use. Unix seconds."""

    def __call__(self, usage: Usage, *, put_at_s: float, now_s: float) -> Priority:
        """The priority now."""


def recency_frequency(usage: Usage, *, put_at_s: float, now_s: float) -> Priority:
    """`0.7 / (1 + hours since last access) + 0.3 * min(accesses in 7 days / 100, 1)`.

    A context that was never used counts as used when it was put: somebody meant to use it.
    """
    last_s = put_at_s if usage.last_access_s is None else max(usage.last_access_s, put_at_s)
    hours = max(0.0, now_s - last_s) / 3600
    score = 0.7 / (1 + hours) + 0.3 * min(usage.accesses_7d / 100, 1.0)
    return Priority(score, f"{_times_used(usage)}, priority {score:.2f}")


POLICIES: Final[Mapping[str, Policy]] = {"recency_frequency": recency_frequency}


def _times_used(usage: Usage) -> str:
    match usage.accesses_7d:
        case 0:
            return "not used yet" if usage.last_access_s is None else "not used in 7 days"
        case 1:
            return "used once in 7 days"
        case times:
            return f"used {times:,} times in 7 days"
