from __future__ import annotations

import pytest

from nightfill.config import PriceSettings
from nightfill.ledger import background_money, saved_money, show_money
from nightfill.state.ledger import LedgerLine

PRICES = PriceSettings(serving_per_hour=3.6, background_per_hour=1.8, machines={"spot": 0.36, "free": 0.0})


def line(machine: str) -> LedgerLine:
    return LedgerLine(
        day=1, tenant="t", user="", context="c", machine=machine, background_s=1000.0, saved_s=500.0, saved_tokens=5
    )


@pytest.mark.parametrize(
    ("machine", "cost", "saved"),
    [("", 0.5, 0.5), ("unheard-of", 0.5, 0.5), ("spot", 0.1, 0.05), ("free", 0.0, 0.0)],
)
def test_a_named_machine_has_one_price_and_others_that_of_what_they_do(machine: str, cost: float, saved: float) -> None:
    assert background_money(line(machine), PRICES) == pytest.approx(cost)
    assert saved_money(line(machine), PRICES) == pytest.approx(saved)


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0.0, "0"), (1.2, "1.20"), (1234.5, "1,234.50"), (0.0312, "0.031"), (0.00002, "2e-05"), (-0.5, "-0.50")],
)
def test_money_shows_at_least_two_digits(amount: float, shown: str) -> None:
    assert show_money(amount) == shown
