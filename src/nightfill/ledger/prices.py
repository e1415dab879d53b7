"""Money: engine seconds at the price of the machine that they ran on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nightfill.config import PriceSettings
    from nightfill.state.ledger import LedgerLine

_HOUR_S: Final = 3600.0


def background_money(line: LedgerLine, prices: PriceSettings) -> float:
    """What the line's background work cost."""
    return line.background_s * prices.machines.get(line.machine, prices.background_per_hour) / _HOUR_S


def saved_money(line: LedgerLine, prices: PriceSettings) -> float:
    """What the engines that served would have cost for computing what they did not have to."""
    return line.saved_s * prices.machines.get(line.machine, prices.serving_per_hour) / _HOUR_S


def show_money(amount: float) -> str:
    """Two decimals, or two digits where that would be nothing: `1,200.00`, `0.031`, `2e-05`, `0`."""
    if not amount:
        return "0"
    return f"{amount:,.2f}" if abs(amount) >= 0.1 else f"{amount:.2g}"
