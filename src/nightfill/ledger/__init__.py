"""What background work cost, what it saved, and whether it pays: pure rules over the lines of `state.ledger`."""

from nightfill.ledger.breakeven import does_not_pay, on_trial_since, uses_to_break_even
from nightfill.ledger.prices import background_money, saved_money, show_money
from nightfill.ledger.report import By, Row, day_of, day_of_text, report, text_of_day, total
from nightfill.ledger.reserve import tokens_to_reserve

__all__ = [
    "By",
    "Row",
    "background_money",
    "day_of",
    "day_of_text",
    "does_not_pay",
    "on_trial_since",
    "report",
    "saved_money",
    "show_money",
    "text_of_day",
    "tokens_to_reserve",
    "total",
    "uses_to_break_even",
]
