from __future__ import annotations

import pytest

from nightfill.config import PriceSettings, SleepSettings
from nightfill.sleep.priority import MOST, policy_of, recency_frequency, value
from nightfill.sleep.worth import Case
from nightfill.state.access import Usage

NOW_S = 1e9
HOUR = int(NOW_S // 3600)
NEVER = Usage(last_access_s=None, accesses_7d=0, broken_7d=0)
BUSY = Usage(last_access_s=NOW_S - 60, accesses_7d=60, broken_7d=0, hours={HOUR - back: 10 for back in range(6)})


def case(usage: Usage, *, put_h: float = 6.0, ttl_h: float = 4.0, tokens: int = 1, stored_tokens: int = 0) -> Case:
    at_s = NOW_S - 3600 * put_h
    return Case(
        usage=usage,
        since_s=at_s,
        put_at_s=at_s,
        now_s=NOW_S,
        ttl_s=3600 * ttl_h,
        tokens=tokens,
        stored_tokens=stored_tokens,
    )


@pytest.mark.parametrize(
    ("last_h", "accesses", "put_h", "score", "why"),
    [
        (0, 0, 0, 0.70, "not used in 7 days, priority 0.70"),
        (1, 1, 50, 0.353, "used once in 7 days, priority 0.35"),
        (6, 100, 50, 0.40, "used 100 times in 7 days, priority 0.40"),
        (6, 5000, 50, 0.40, "used 5,000 times in 7 days, priority 0.40"),
        (None, 0, 1, 0.35, "not used yet, priority 0.35"),
        (300, 0, 0, 0.70, "not used in 7 days, priority 0.70"),
        (-2, 3, 5, 0.709, "used 3 times in 7 days, priority 0.71"),
    ],
)
def test_recent_and_frequent_use_count(
    last_h: float | None, accesses: int, put_h: float, score: float, why: str
) -> None:
    last_s = None if last_h is None else NOW_S - 3600 * last_h
    usage = Usage(last_access_s=last_s, accesses_7d=accesses, broken_7d=0)
    priority = recency_frequency(case(usage, put_h=put_h))
    assert (round(priority.score, 3), priority.why) == (score, why)


def test_the_weights_of_the_reference_are_settings() -> None:
    settings = SleepSettings(policy="recency_frequency", recency_weight=0.0, frequency_weight=2.0)
    assert policy_of(settings, PriceSettings())(case(BUSY)).score == pytest.approx(1.2)


def test_by_value_a_score_says_how_it_came_about() -> None:
    found = value(case(BUSY))
    assert found.score == pytest.approx(40, rel=0.2)
    assert found.why.startswith("used 60 times in 7 days, ")
    assert "expected in 4 h" in found.why
    assert found.again


def test_by_value_what_is_never_used_is_worth_one_use_and_is_not_made_again() -> None:
    found = value(case(NEVER, put_h=0))
    assert found.score == pytest.approx(1.0)
    assert not found.again


def test_by_value_what_does_not_pay_at_these_prices_is_not_made_again() -> None:
    rare = Usage(last_access_s=NOW_S - 3600, accesses_7d=1, broken_7d=0, hours={HOUR - 1: 1})
    cheap, dear = (
        policy_of(SleepSettings(), PriceSettings(background_per_hour=price, serving_per_hour=1.0))
        for price in (0.01, 50)
    )
    assert (cheap(case(rare)).again, dear(case(rare)).again) == (True, False)


def test_by_value_the_score_has_a_bound() -> None:
    assert value(case(BUSY, tokens=10, stored_tokens=10)).score == MOST


def test_a_policy_without_a_setting_is_by_value() -> None:
    assert policy_of(SleepSettings(), PriceSettings())(case(BUSY)) == value(case(BUSY), break_even=1.66 / 2.57)
