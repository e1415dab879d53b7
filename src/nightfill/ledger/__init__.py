"""What background work cost, what it saved, and whether it pays: pure rules over the lines of `state.ledger`."""

from nightfill.ledger.breakeven import does_not_pay, on_trial_since, uses_to_break_even
from nightfill.ledger.prices import background_money, saved_money, show_money
from nightfill.ledger.report import By, Row, day_of, day_of_text, report, text_of_day, total
from nightfill.ledger.reserve import tokens_to_reserve
from nightfill.ledger.view import DEFAULT_SINCE, FIGURES, NAMES, bill, parse_by, parse_since, row_view

__all__ = [
    "DEFAULT_SINCE",
    "FIGURES",
    "NAMES",
    "By",
    "Row",
    "background_money",
    "bill",
    "day_of",
    "day_of_text",
    "does_not_pay",
    "on_trial_since",
    "parse_by",
    "parse_since",
    "report",
    "row_view",
    "saved_money",
    "show_money",
    "text_of_day",
    "tokens_to_reserve",
    "total",
    "uses_to_break_even",
]
