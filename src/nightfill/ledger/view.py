"""The bill as people ask for it and as they get it: over HTTP and from commands alike."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from nightfill.errors import BadInput
from nightfill.ledger.report import By, day_of, day_of_text, report, text_of_day, total

if TYPE_CHECKING:
    from nightfill.config import PriceSettings
    from nightfill.ledger.report import Row
    from nightfill.state.ledger import LedgerBook

DEFAULT_SINCE: Final = "30d"
FIGURES: Final = (
    *("background_tokens", "background_s", "background_money", "fills"),
    *("requests", "hits", "hit_rate", "saved_tokens", "saved_s", "saved_money"),
    *("break_even", "net"),
)
"""Of a row, in the order of its columns."""
NAMES: Final[dict[By, tuple[str, ...]]] = {
    By.CONTEXT: ("tenant", "user", "context"),
    By.USER: ("tenant", "user"),
    By.TENANT: ("tenant",),
    By.DAY: ("day",),
    By.TOTAL: (),
}
"""What tells the rows apart."""
_DAYS: Final = re.compile(r"([0-9]{1,5})d")


def parse_by(text: str) -> By:
    """What a row is to be about. Raises BadInput."""
    try:
        return By(text)
    except ValueError as exc:
        raise BadInput(f"by {text[:80]!a} must be one of {', '.join(By)}", param="by") from exc


def parse_since(text: str, *, now_s: float) -> int:
    """The first day, from `7d` or `2026-02-28`. Raises BadInput."""
    match = _DAYS.fullmatch(text)
    try:
        return day_of(now_s) - int(match[1]) if match else day_of_text(text)
    except ValueError as exc:
        raise BadInput(
            f"since {text[:80]!a} must be a number of days such as 7d, or a date such as 2026-02-28", param="since"
        ) from exc


async def bill(
    book: LedgerBook, prices: PriceSettings, *, by: By, since_day: int, now_s: float, tenant: str | None = None
) -> dict[str, Any]:
    """The rows and their total since a day, as JSON. Raises StateUnavailable."""
    until_day = day_of(now_s)
    lines = await book.lines(since_day=since_day, until_day=until_day, tenant=tenant)
    return {
        "by": by,
        "since": text_of_day(since_day),
        "until": text_of_day(until_day),
        "data": [row_view(row, by) for row in report(lines, by, prices)],
        "total": row_view(total(lines, prices), By.TOTAL),
    }


def row_view(row: Row, by: By) -> dict[str, Any]:
    """A row as a flat JSON object: what tells it apart, then its figures."""
    return {name: getattr(row, name) for name in (*NAMES[by], *FIGURES)}
