from __future__ import annotations

import pytest

from nightfill.config import PriceSettings
from nightfill.ledger import By, day_of, day_of_text, report, text_of_day, total
from nightfill.state.ledger import LedgerLine

PRICES = PriceSettings(serving_per_hour=7200.0, background_per_hour=3600.0)
"""A second in the background costs 1, one that serves 2."""


def line(day: int, tenant: str, user: str, context: str, **sums: float) -> LedgerLine:
    return LedgerLine(day=day, tenant=tenant, user=user, context=context, machine="", **sums)  # type: ignore[arg-type]


LINES = [
    line(10, "a", "ann", "repo", background_tokens=900, background_s=9.0, fills=1),
    line(10, "b", "", "repo", background_tokens=50, background_s=1.0, fills=1, requests=4),
    line(11, "a", "ann", "repo", requests=4, hits=3, saved_tokens=2700, saved_s=27.0),
    line(11, "a", "bob", "docs", background_tokens=100, background_s=1.0, fills=1),
]


def test_contexts_of_the_same_name_are_told_apart_by_their_tenants() -> None:
    first, docs, other = sorted(report(LINES, By.CONTEXT, PRICES), key=lambda row: (-row.hits, row.tenant or ""))
    assert (first.tenant, first.user, first.context, first.day) == ("a", "ann", "repo", None)
    assert (first.background_tokens, first.background_money, first.saved_money) == (900, 9.0, 54.0)
    assert (first.hit_rate, first.net) == (0.75, 45.0)
    assert first.break_even == pytest.approx(0.5), "half a use of the three has paid"
    assert (docs.context, docs.hit_rate, docs.break_even, docs.net) == ("docs", None, None, -1.0)
    assert (other.tenant, other.hit_rate, other.break_even) == ("b", 0.0, None)


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (By.USER, [("a", "ann"), ("a", "bob"), ("b", "")]),
        (By.TENANT, [("a", None), ("b", None)]),
        (By.DAY, [(None, None), (None, None)]),
        (By.TOTAL, [(None, None)]),
    ],
)
def test_the_same_sums_are_told_apart_by_what_is_asked_for(by: By, names: list[tuple[str | None, str | None]]) -> None:
    rows = report(LINES, by, PRICES)
    assert [(row.tenant, row.user) for row in rows] == names
    assert all(row.context is None for row in rows)
    whole = total(LINES, PRICES)
    assert sum(row.background_tokens for row in rows) == whole.background_tokens == 1050
    assert sum(row.net for row in rows) == pytest.approx(whole.net)


def test_days_come_in_their_order_across_a_number_of_digits() -> None:
    rows = report([line(9999, "a", "", "c"), line(10000, "a", "", "c")], By.DAY, PRICES)
    assert [row.day for row in rows] == ["1997-05-18", "1997-05-19"]


def test_a_context_that_changed_hands_is_its_last_users() -> None:
    (row,) = report([line(1, "a", "ann", "c", fills=1), line(2, "a", "bob", "c", fills=1)], By.CONTEXT, PRICES)
    assert (row.user, row.fills) == ("bob", 2)


def test_nothing_sums_up_to_nothing() -> None:
    assert report([], By.TOTAL, PRICES) == []
    empty = total([], PRICES)
    assert (empty.background_tokens, empty.net, empty.hit_rate, empty.break_even) == (0, 0.0, None, None)


def test_days_are_those_of_utc() -> None:
    assert day_of(86399.9) == 0
    assert day_of(86400.0) == 1
    assert (text_of_day(0), text_of_day(20513)) == ("1970-01-01", "2026-03-01")
    assert day_of_text("2026-03-01") == 20513
    with pytest.raises(ValueError, match="month"):
        day_of_text("2026-13-01")
