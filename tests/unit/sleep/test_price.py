from __future__ import annotations

import pytest

from nightfill.sleep.price import clearing_price, fills_until


@pytest.mark.parametrize(
    ("left_tokens", "price"),
    [(100, 0.0), (60, 0.0), (59, 5.0), (30, 5.0), (29, 9.0), (10, 9.0), (9, 9.0), (0, 9.0)],
)
def test_the_price_is_the_lowest_score_that_the_budget_reaches(left_tokens: float, price: float) -> None:
    assert clearing_price([(1.0, 30), (9.0, 10), (5.0, 20)], left_tokens) == price


def test_what_is_worth_the_same_has_the_same_price() -> None:
    assert clearing_price([(4.0, 10)] * 5, 25) == 4.0


def test_nothing_wanted_costs_nothing() -> None:
    assert clearing_price([], 0) == 0


def test_a_context_is_filled_anew_whenever_its_fill_ends_until_the_reset() -> None:
    assert list(fills_until(24.0, from_s=15.0, ttl_s=4.0)) == [15.0, 19.0, 23.0]
    assert list(fills_until(24.0, from_s=24.0, ttl_s=4.0)) == []
