"""The bill: lines of the ledger summed up by context, user, tenant, day, or all together."""

from __future__ import annotations

import enum
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Final

from nightfill.ledger.breakeven import uses_to_break_even
from nightfill.ledger.prices import background_money, saved_money

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nightfill.config import PriceSettings
    from nightfill.state.ledger import LedgerLine

_EPOCH: Final = date(1970, 1, 1).toordinal()


class By(enum.StrEnum):
    """What a row of the bill is about."""

    CONTEXT = "context"
    USER = "user"
    TENANT = "tenant"
    DAY = "day"
    TOTAL = "total"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Sums of some lines. Of `tenant`, `user`, `context` and `day`, those that the rows are not told apart by are None.

    Money is in the currency of the prices.
    """

    tenant: str | None = None
    user: str | None = None
    context: str | None = None
    day: str | None = None
    """Such as `2026-02-28`, UTC."""
    background_tokens: int
    background_s: float
    background_money: float
    fills: int
    requests: int
    hits: int
    saved_tokens: int
    saved_s: float
    saved_money: float

    @property
    def hit_rate(self) -> float | None:
        """Of the requests that named a context, the share that a fill served; None without any."""
        return self.hits / self.requests if self.requests else None

    @property
    def break_even(self) -> float | None:
        """So many hits pay for the background work, as they have saved so far; None while they saved nothing."""
        return uses_to_break_even(background_money=self.background_money, saved_money=self.saved_money, uses=self.hits)

    @property
    def net(self) -> float:
        """Saved less spent."""
        return self.saved_money - self.background_money


def report(lines: Iterable[LedgerLine], by: By, prices: PriceSettings) -> list[Row]:
    """One row for each context, user, tenant or day of the lines, by name or date; none where there are no lines."""
    groups: dict[tuple[str, ...], list[LedgerLine]] = defaultdict(list)
    for line in lines:
        groups[_key(line, by)].append(line)
    return [_row(groups[key], by, prices) for key in sorted(groups)]


def total(lines: Sequence[LedgerLine], prices: PriceSettings) -> Row:
    """All lines in one row; zeros where there are none."""
    return _row(lines, By.TOTAL, prices)


def day_of(at_s: float) -> int:
    """Unix seconds as days since 1970-01-01 UTC."""
    return int(at_s // 86400)


def text_of_day(day: int) -> str:
    """Days since 1970-01-01 as `2026-02-28`."""
    return date.fromordinal(_EPOCH + day).isoformat()


def day_of_text(text: str) -> int:
    """The inverse of `text_of_day`. Raises ValueError."""
    return date.fromisoformat(text).toordinal() - _EPOCH


def _key(line: LedgerLine, by: By) -> tuple[str, ...]:
    match by:
        case By.CONTEXT:
            return line.tenant, line.context
        case By.USER:
            return line.tenant, line.user
        case By.TENANT:
            return (line.tenant,)
        case By.DAY:
            return (f"{line.day:09}",)
        case By.TOTAL:
            return ()


def _row(lines: Sequence[LedgerLine], by: By, prices: PriceSettings) -> Row:
    last = lines[-1] if lines else None
    named = last is not None and by in (By.CONTEXT, By.USER, By.TENANT)
    return Row(
        tenant=last.tenant if named and last else None,
        user=last.user if last and by in (By.CONTEXT, By.USER) else None,
        context=last.context if last and by is By.CONTEXT else None,
        day=text_of_day(last.day) if last and by is By.DAY else None,
        background_tokens=sum(line.background_tokens for line in lines),
        background_s=sum(line.background_s for line in lines),
        background_money=sum(background_money(line, prices) for line in lines),
        fills=sum(line.fills for line in lines),
        requests=sum(line.requests for line in lines),
        hits=sum(line.hits for line in lines),
        saved_tokens=sum(line.saved_tokens for line in lines),
        saved_s=sum(line.saved_s for line in lines),
        saved_money=sum(saved_money(line, prices) for line in lines),
    )
