from __future__ import annotations

import pytest

from nightfill.sleep.history import expected_uses
from nightfill.state.access import Usage

HOUR_S, DAY = 3600.0, 24
NOW_H = 100 * DAY + 12


def usage(hours: dict[int, int]) -> Usage:
    """Accesses by hour, counted from now: -1 is the hour that has just ended."""
    return Usage(
        last_access_s=(NOW_H + max(hours)) * HOUR_S + 1800 if hours else None,
        accesses_7d=sum(hours.values()),
        broken_7d=0,
        hours={NOW_H + hour: uses for hour, uses in hours.items()},
    )


def expected(hours: dict[int, int], *, after_h: float = 0, span_h: float = 4, since_h: float = 28 * DAY) -> float:
    now_s = NOW_H * HOUR_S
    return expected_uses(
        usage(hours),
        start_s=now_s + after_h * HOUR_S,
        horizon_s=span_h * HOUR_S,
        now_s=now_s,
        since_s=now_s - since_h * HOUR_S,
    ).uses


def test_what_has_no_past_goes_on_as_it_is() -> None:
    assert expected({-1: 60, -2: 60}, since_h=2) == pytest.approx(240)


def test_hours_before_the_context_existed_say_nothing() -> None:
    assert expected({-1: 60}, since_h=1) == pytest.approx(240)
    assert expected({-1: 60}, since_h=20) < 200


def test_a_minute_does_not_make_an_hour() -> None:
    assert 4 < expected({-1: 2}, since_h=1 / 60) < 10


def test_the_last_hour_counts_most() -> None:
    rising, falling = {-2: 10, -1: 90}, {-2: 90, -1: 10}
    assert expected(rising, since_h=12) > 1.5 * expected(falling, since_h=12)


def test_what_is_silent_now_is_expected_when_past_days_say_so() -> None:
    each_evening = {3 - DAY * day: 500 for day in range(1, 8)}
    assert expected(each_evening, after_h=3, span_h=1) > 300
    assert expected(each_evening, after_h=5, span_h=1) < 1


def test_a_day_that_is_busier_than_others_stays_busier() -> None:
    usual = {hour - DAY * day: 100 for day in range(1, 8) for hour in range(-5, 5)}
    today = dict.fromkeys(range(-5, 0), 200)
    assert expected({**usual, **today}) == pytest.approx(800, rel=0.1)


def test_what_should_be_busy_by_now_and_is_not_has_ended() -> None:
    usual = {hour - DAY * day: 100 for day in range(1, 8) for hour in range(-5, 5)}
    assert expected(usual) < 5


def test_the_hour_that_has_just_begun_counts_by_its_part() -> None:
    now_s = (NOW_H + 0.25) * HOUR_S
    steady = usage({0: 15, -1: 60, -2: 60, -3: 60, -4: 60})
    found = expected_uses(steady, start_s=now_s, horizon_s=HOUR_S, now_s=now_s, since_s=now_s - 8 * HOUR_S)
    assert found.uses == pytest.approx(60, rel=0.01)


def test_the_probability_is_that_of_days_like_this_one() -> None:
    every_other = {2 - DAY * day: 500 for day in (1, 3, 5, 7)}
    now_s = NOW_H * HOUR_S
    found = expected_uses(
        usage(every_other), start_s=now_s, horizon_s=4 * HOUR_S, now_s=now_s, since_s=now_s - 7 * DAY * HOUR_S
    )
    assert found.probability == pytest.approx(4 / 8)


def test_never_more_likely_than_there_are_uses() -> None:
    now_s = NOW_H * HOUR_S
    found = expected_uses(usage({-1: 1}), start_s=now_s, horizon_s=600, now_s=now_s, since_s=now_s - 20 * HOUR_S)
    assert 0 < found.probability <= found.uses < 0.2


def test_what_was_used_today_and_is_silent_is_expected_about_once_while_no_other_day_is_known() -> None:
    this_morning = {-8: 30, -7: 20}
    assert expected(this_morning, since_h=9, span_h=24) == pytest.approx(1, abs=0.1)
    assert expected(this_morning, since_h=3 * DAY, span_h=4) < 0.1


def test_a_context_of_this_instant_has_no_past() -> None:
    assert expected({}, since_h=0) == 0
