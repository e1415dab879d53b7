"""All policies on one fleet, beside what was possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.simulate.contexts import ByPolicy, ByValue, Clairvoyant, Run, nothing, run, unlimited
from nightfill.simulate.latency import Latency, Ttft
from nightfill.simulate.report import Outcome
from nightfill.sleep.priority import Priority, recency_frequency, value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nightfill.config import PriceSettings
    from nightfill.simulate.fleet import Fleet
    from nightfill.sleep.worth import Case

_HOUR_S: Final = 3600.0


class KeptContexts(Outcome, frozen=True, kw_only=True):
    """What a policy achieved that chose the contexts to keep filled."""

    seed: int
    bound_share: float
    """Of `bound_tokens`, what was saved."""
    fills: int
    background_s: float
    """Engine seconds."""
    saved_s: float
    """Engine seconds, less what loading took."""
    background_money: float
    saved_money: float
    ttft_s: Ttft


def least_recent(case: Case) -> Priority:
    """LRU: what was used last is kept first."""
    last_s = case.put_at_s if case.usage.last_access_s is None else case.usage.last_access_s
    return Priority(1 / (1 + case.now_s - last_s), "")


def contest(fleet: Fleet, bound_tokens: int, prices: PriceSettings, *, seed: int) -> Iterator[KeptContexts]:
    """Each policy's outcome, as soon as it is known.

    `..._evenly` is a policy whose budget is handed out through the day, `value_at_once` is `value` without a price.
    `clairvoyant` is no policy: it knows the future, and shows how close to the bound a plan can come. `unlimited` has
    no budget, and so not that bound.
    """
    break_even = prices.background_per_hour / prices.serving_per_hour
    latency = Latency(fleet)

    def outcome(policy: str, done: Run) -> KeptContexts:
        speeds = fleet.machines.speeds
        background_s = done.background_tokens / speeds.fill
        saved_s = done.saved_tokens * max(0.0, 1 / speeds.prefill - 1 / speeds.restore)
        return KeptContexts(
            policy=policy,
            seed=seed,
            saved_tokens=done.saved_tokens,
            bound_tokens=bound_tokens,
            hit_ratio=done.hits / done.uses if done.uses else 0.0,
            background_tokens=done.background_tokens,
            bound_share=done.saved_tokens / bound_tokens if bound_tokens else 1.0,
            fills=done.fills,
            background_s=background_s,
            saved_s=saved_s,
            background_money=background_s * prices.background_per_hour / _HOUR_S,
            saved_money=saved_s * prices.serving_per_hour / _HOUR_S,
            ttft_s=latency.of(done.served),
        )

    yield outcome("none", nothing(fleet))
    yield outcome("lru", run(fleet, ByPolicy(fleet, least_recent)))
    yield outcome("lru_evenly", run(fleet, ByPolicy(fleet, least_recent), evenly=True))
    yield outcome("recency_frequency", run(fleet, ByPolicy(fleet, recency_frequency)))
    yield outcome("recency_frequency_evenly", run(fleet, ByPolicy(fleet, recency_frequency), evenly=True))
    yield outcome("value_at_once", run(fleet, ByPolicy(fleet, value)))
    yield outcome("value", run(fleet, ByValue(fleet, break_even=break_even)))
    yield outcome("clairvoyant", run(fleet, Clairvoyant(fleet)))
    yield outcome("unlimited", unlimited(fleet))
