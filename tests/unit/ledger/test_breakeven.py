from __future__ import annotations

import pytest

from nightfill.config import PriceSettings
from nightfill.contexts.context import (
    Context,
    ContextName,
    FolderSource,
    Form,
    MessagesSource,
    Source,
    Tenant,
    Text,
    TextSource,
)
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.ledger import does_not_pay, on_trial_since, uses_to_break_even
from nightfill.state.ledger import LedgerLine

DAY_S = 86400.0
WEEK_S = 7 * DAY_S
PRICES = PriceSettings(serving_per_hour=3600.0, background_per_hour=3600.0)
"""A second costs 1."""


def line(*, cost: float = 0.0, saved: float = 0.0) -> LedgerLine:
    return LedgerLine(day=1, tenant="t", user="", context="c", machine="", background_s=cost, saved_s=saved)


def test_one_use_pays_at_the_prices_of_the_seed_formula() -> None:
    # A fill of 10 s at 1.66 an hour, each use of which saves 10 s at 2.57 an hour.
    needed = uses_to_break_even(background_money=10 * 1.66 / 3600, saved_money=3 * 10 * 2.57 / 3600, uses=3)
    assert needed == pytest.approx(1.66 / 2.57)


def test_uses_that_saved_nothing_never_pay() -> None:
    assert uses_to_break_even(background_money=1.0, saved_money=0.0, uses=5) is None
    assert uses_to_break_even(background_money=1.0, saved_money=0.0, uses=0) is None


@pytest.mark.parametrize(
    ("lines", "age_s", "stop_after_s", "why"),
    [
        ([line(cost=1.2), line(saved=0.03)], 8 * DAY_S, WEEK_S, "cost 1.20, saved 0.03 in 8 days"),
        ([line(cost=1.2)], 7.5 * DAY_S, WEEK_S, "cost 1.20, saved 0 in 7.5 days"),
        ([line(cost=1.2)], WEEK_S - 1, WEEK_S, None),
        ([line(cost=1.2)], 100 * DAY_S, 0.0, None),
        ([line(cost=1.2), line(saved=1.2)], 8 * DAY_S, WEEK_S, None),
        ([], 8 * DAY_S, WEEK_S, None),
    ],
)
def test_what_cost_more_than_it_saved_is_stopped_once_its_time_is_over(
    lines: list[LedgerLine], age_s: float, stop_after_s: float, why: str | None
) -> None:
    assert does_not_pay(lines, age_s=age_s, stop_after_s=stop_after_s, prices=PRICES) == why


@pytest.mark.parametrize(
    ("source", "since_s"), [(TextSource(), 200.0), (MessagesSource(), 200.0), (FolderSource("/srv"), 100.0)]
)
def test_a_new_text_is_tried_anew_and_a_folder_that_changed_by_itself_is_not(source: Source, since_s: float) -> None:
    context = Context(
        tenant=Tenant("t"),
        name=ContextName("c"),
        source=source,
        forms=(Form.CHAT,),
        pinned=False,
        ttl_s=None,
        current=fingerprint_of(Text("x")),
        content_bytes=1,
        created_at_s=100.0,
        updated_at_s=200.0,
        checked_at_s=300.0,
    )
    assert on_trial_since(context) == since_s
