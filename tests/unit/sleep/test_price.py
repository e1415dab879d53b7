from __future__ import annotations

from dataclasses import replace

import pytest

from nightfill.sleep.price import Demand, left_today, refills
from nightfill.sleep.worth import Case
from nightfill.state.access import Usage
from nightfill.state.budgets import BudgetLine, Period, Scope

HOUR_S = 3600.0
DAY_S = 86400.0
NOW_S = 20_000 * DAY_S
CASE = Case(
    usage=Usage(last_access_s=None, accesses_7d=0, broken_7d=0),
    since_s=NOW_S - DAY_S,
    put_at_s=NOW_S - DAY_S,
    now_s=NOW_S,
    ttl_s=4 * HOUR_S,
)


def demand(*wanted: tuple[float, float], left: float) -> Demand:
    made = Demand(left)
    for score, tokens in wanted:
        made.add(score, tokens)
    return made


@pytest.mark.parametrize(
    ("left_tokens", "least", "most"),
    [(100, 0, 0), (60, 0, 0), (59, 1, 5), (30, 1, 5), (29, 5, 9), (10, 5, 9), (9, 8.8, 9), (0, 8.8, 9)],
)
def test_the_price_is_below_what_the_budget_reaches_and_above_what_it_does_not(
    left_tokens: float, least: float, most: float
) -> None:
    found = demand((1.0, 30), (9.0, 10), (5.0, 20), left=100).price(left_tokens)
    assert least < found < most or found == least == most == 0


def test_of_what_is_worth_the_same_the_budget_takes_what_fits() -> None:
    assert demand(*[(4.0, 10.0)] * 5, left=25).price() == pytest.approx(4.0, rel=0.02)


def test_nothing_wanted_costs_nothing() -> None:
    assert demand(left=0).price() == 0
    assert demand((0.0, 5), left=3).price() == 0


def test_what_the_budget_could_never_pay_does_not_keep_others_from_it() -> None:
    assert demand((9.0, 1000), (1.0, 10), left=100).price() == 0


def test_what_is_pinned_comes_before_any_score() -> None:
    assert demand((float("inf"), 80), (5.0, 20), (4.0, 20), left=100).price() == pytest.approx((5 * 4) ** 0.5, rel=0.02)


def test_a_context_is_filled_anew_whenever_its_fill_ends_until_the_reset() -> None:
    def fills(from_s: float, ttl_s: float = 4 * HOUR_S) -> list[float]:
        case = replace(CASE, ttl_s=ttl_s)
        return [n for _, n in refills(case, from_s=NOW_S + from_s, reset_s=NOW_S + 24 * HOUR_S, extended=False)]

    assert fills(15 * HOUR_S) == [1, 1, 1]
    assert fills(24 * HOUR_S) == []
    assert fills(22 * HOUR_S, ttl_s=HOUR_S / 2) == [1, 2]


def test_a_fill_that_is_used_need_not_be_made_again() -> None:
    hours = {int(NOW_S // HOUR_S) - back: 10 for back in range(24 * 8)}
    busy = Usage(last_access_s=NOW_S - 1, accesses_7d=1680, broken_7d=0, hours=hours)
    case = replace(CASE, usage=busy, since_s=NOW_S - 30 * DAY_S)
    [(_, first), *more] = refills(case, from_s=NOW_S, reset_s=NOW_S + DAY_S, extended=True)
    assert first == 1
    assert len(more) == 5
    assert all(fills < 0.2 for _, fills in more)


def budget(period: Period, limit: int | None, *, spent: int = 0) -> BudgetLine:
    return BudgetLine(scope=Scope(), period=period, limit=limit, own=True, spent=spent, reserved=10, resets_at_s=0.0)


def test_a_months_budget_is_for_all_of_its_days_that_are_left() -> None:
    now_s = 1_700_000_000.0  # 2023-11-14, 22:13 UTC: seventeen days of November are left, this one among them
    midnight_s = (now_s // DAY_S + 1) * DAY_S
    day, month = budget(Period.DAY, 1010, spent=400), budget(Period.MONTH, 17_010, spent=8500)
    none = [budget(Period.DAY, None), budget(Period.MONTH, None)]
    assert left_today(none, now_s) is None
    assert left_today([day, none[1]], now_s) == (600, midnight_s)
    assert left_today([none[0], month], now_s) == (500, midnight_s)
    assert left_today([day, month], now_s) == (500, midnight_s)
