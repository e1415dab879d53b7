"""How much a fill is worth, as pure functions of how its context was used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from nightfill.sleep.worth import ALIKE, FARTHEST_S, Case, worth

if TYPE_CHECKING:
    from nightfill.config import PriceSettings, SleepSettings
    from nightfill.contexts.context import Context, Fill, Outline
    from nightfill.sleep.worth import Speeds
    from nightfill.state.access import Usage

DEFAULT_TTL_S: Final = 7 * 86400.0
MOST: Final = 1e8
"""Of a score: what somebody asks for comes before all that a policy ranks."""
BREAK_EVEN: Final = 0.65
"""Seconds saved per second of background work that pay for it, at the default prices."""


@dataclass(frozen=True, slots=True)
class Priority:
    """A score, higher first, and why in a few words."""

    score: float
    why: str
    again: bool = True
    """Whether a fill that is gone is made again."""


class Policy(Protocol):
    """A ranking of contexts."""

    def __call__(self, case: Case) -> Priority:
        """The priority now; its score is from 0 to `MOST`."""


def case_of(
    context: Context,
    usage: Usage,
    *,
    now_s: float,
    default_ttl_s: float,
    fill: Fill | Outline | None = None,
    speeds: Speeds = ALIKE,
) -> Case:
    """What may be known about a context; with `fill`, about completing that one instead of making it from nothing."""
    ttl_s = default_ttl_s if context.ttl_s is None else context.ttl_s
    tokens = max(1, fill.total_tokens) if fill is not None else 1
    reusable = fill is not None and not fill.drifted and fill.stored_tokens < tokens
    return Case(
        usage=usage,
        since_s=min(context.created_at_s, now_s),
        put_at_s=context.updated_at_s,
        now_s=now_s,
        ttl_s=max(1.0, ttl_s),
        tokens=tokens,
        stored_tokens=fill.stored_tokens if fill is not None and reusable else 0,
        speeds=speeds,
    )


def recency_frequency(case: Case, *, recency: float = 0.7, frequency: float = 0.3) -> Priority:
    """`recency / (1 + hours since last access) + frequency * min(accesses in 7 days / 100, 1)`.

    A context that was never used counts as used when it was put: somebody meant to use it. What is gone is made again
    when it was used within its time to live.
    """
    usage = case.usage
    last_s = case.put_at_s if usage.last_access_s is None else max(usage.last_access_s, case.put_at_s)
    hours = max(0.0, case.now_s - last_s) / 3600
    score = recency / (1 + hours) + frequency * min(usage.accesses_7d / 100, 1.0)
    again = usage.last_access_s is not None and case.now_s - usage.last_access_s < case.ttl_s
    return Priority(score, f"{_times_used(usage)}, priority {score:.2f}", again)


def value(case: Case, *, break_even: float = BREAK_EVEN) -> Priority:
    """Expected prefill seconds saved while a fill lasts, per second of background work: see `sleep.worth`.

    What is gone is made again when it was ever used and that pays, so also before a use that the time of day foretells.
    """
    ahead_s = min(case.ttl_s, FARTHEST_S)
    found = worth(case)
    score = min(found.score, MOST)
    expected = found.expected
    why = (
        f"{_times_used(case.usage)}, {expected.uses:.2g} expected in {ahead_s / 3600:.2g} h "
        f"(any at all: {expected.probability:.0%}), {score:.2g} s saved per s of filling"
    )
    return Priority(score, why, case.usage.last_access_s is not None and score >= break_even)


def policy_of(settings: SleepSettings, prices: PriceSettings) -> Policy:
    """The policy that the settings name."""
    if settings.policy == "recency_frequency":
        weights = {"recency": settings.recency_weight, "frequency": settings.frequency_weight}
        return lambda case: recency_frequency(case, **weights)
    break_even = prices.background_per_hour / prices.serving_per_hour if prices.serving_per_hour else float("inf")
    return lambda case: value(case, break_even=break_even)


def _times_used(usage: Usage) -> str:
    match usage.accesses_7d:
        case 0:
            return "not used yet" if usage.last_access_s is None else "not used in 7 days"
        case 1:
            return "used once in 7 days"
        case times:
            return f"used {times:,} times in 7 days"
