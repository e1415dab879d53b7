"""When a fill has paid for itself, and when it is not worth another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.contexts.context import MessagesSource, TextSource
from nightfill.ledger.prices import background_money, saved_money, show_money

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.config import PriceSettings
    from nightfill.contexts.context import Context
    from nightfill.state.ledger import LedgerLine


def uses_to_break_even(*, background_money: float, saved_money: float, uses: int) -> float | None:
    """How many uses pay for the background work: its price, over what each of the `uses` so far has saved.

    For one fill, with seconds alike on both machines, it is the price of a background second over that of a serving
    one. None while no use has saved anything.
    """
    return background_money * uses / saved_money if uses and saved_money > 0 else None


def on_trial_since(context: Context) -> float:
    """From when on a context's fills are judged, in Unix seconds: since somebody gave it its content.

    A folder that changes each night and is never asked about must not get a new trial with every change, so what is
    read from a source is judged from its first day on.
    """
    given = isinstance(context.source, TextSource | MessagesSource)
    return context.updated_at_s if given else context.created_at_s


def does_not_pay(
    lines: Sequence[LedgerLine], *, age_s: float, stop_after_s: float, prices: PriceSettings
) -> str | None:
    """Why a context that is on trial for `age_s` is not filled again: its fills have cost more than they saved.

    `lines` are those of the trial. None while it pays, is younger than `stop_after_s`, or that is 0.
    """
    if stop_after_s <= 0 or age_s < stop_after_s:
        return None
    cost = sum(background_money(line, prices) for line in lines)
    saved = sum(saved_money(line, prices) for line in lines)
    if cost <= saved:
        return None
    return f"cost {show_money(cost)}, saved {show_money(saved)} in {age_s / 86400:.3g} days"
