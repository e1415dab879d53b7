"""Budgets of background work: tokens per user, per tenant and for all, by UTC day and month.

What a job may need is set aside when it is queued, what it computes is charged as it goes, and what it did not need
returns at its end. So for each scope, at every instant: *set aside* is the sum over its unfinished jobs, *spent* the
sum of what the ledger has for the period. A new day or month begins with nothing spent; what unfinished jobs have set
aside stays set aside.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Final, Protocol

from nightfill.errors import BudgetSpent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DAY_S: Final = 86400
_EPOCH: Final = date(1970, 1, 1).toordinal()


class Period(enum.StrEnum):
    """What a budget is for. Both begin at midnight UTC."""

    DAY = "day"
    MONTH = "month"

    def days(self, now_s: float) -> range:
        """The days, since 1970-01-01 UTC, of the period under way at the Unix time `now_s`."""
        today = int(now_s // DAY_S)
        if self is Period.DAY:
            return range(today, today + 1)
        first = date.fromordinal(_EPOCH + today).replace(day=1)
        after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
        return range(first.toordinal() - _EPOCH, after.toordinal() - _EPOCH)


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose budget. Both None: of all together. `user` None: a tenant's; else that of one user of it."""

    tenant: str | None = None
    user: str | None = None

    def __str__(self) -> str:
        if self.tenant is None:
            return "all"
        return f"tenant {self.tenant}" if self.user is None else f"user {self.user} of {self.tenant}"


def scopes_of(tenant: str, user: str) -> tuple[Scope, ...]:
    """The budgets that pay for one job. Nobody's jobs (`user` empty) are paid by the tenant and by all."""
    shared = (Scope(), Scope(tenant))
    return (*shared, Scope(tenant, user)) if user else shared


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRules:
    """Tokens where nobody has set something else; None for no bound."""

    user_day: int | None = None
    user_month: int | None = None
    tenant_day: int | None = None
    tenant_month: int | None = None
    all_day: int | None = None
    all_month: int | None = None

    def limit(self, scope: Scope, period: Period) -> int | None:
        """What holds for a scope that has no limit of its own."""
        whose = "all" if scope.tenant is None else "tenant" if scope.user is None else "user"
        limit: int | None = getattr(self, f"{whose}_{period}")
        return limit


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLine:
    """One budget as it stands."""

    scope: Scope
    period: Period
    limit: int | None
    """Tokens; None for no bound."""
    own: bool
    """Somebody has set this limit for this very scope."""
    spent: int
    """Tokens computed since the period began."""
    reserved: int
    """Tokens set aside for unfinished jobs."""
    resets_at_s: float
    """Unix seconds of the next period's beginning."""

    @property
    def left(self) -> int | None:
        """What may still be set aside; None for no bound."""
        return None if self.limit is None else max(0, self.limit - self.spent - self.reserved)


def refuse_beyond(lines: Iterable[BudgetLine], tokens: int) -> None:
    """Raise BudgetSpent when one of these has less left than `tokens`: of several, the last one to begin anew."""
    short = [line for line in lines if line.left is not None and line.left < tokens]
    if not short:
        return
    line = max(short, key=lambda line: line.resets_at_s)
    again = datetime.fromtimestamp(line.resets_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    raise BudgetSpent(
        f"the budget of {line.scope} for this {line.period} has {line.left} of {line.limit} tokens left, "
        f"{tokens} were asked for; it begins anew at {again}",
        resets_at_s=line.resets_at_s,
    )


class BudgetBook(Protocol):
    """Limits, and what is spent of them; charged by the `JobQueue` of the same store. Raises StateUnavailable."""

    async def users(self, tenant: str) -> list[Scope]:
        """The budgets of a tenant's users that have a limit of their own, something spent, or something set aside."""

    async def lines(self, scopes: Sequence[Scope] | None = None) -> list[BudgetLine]:
        """Both periods of each scope; None: of all scopes that have a limit of their own, something spent, or something
        set aside.
        """

    async def set_limit(self, scope: Scope, period: Period, tokens: int | None) -> None:
        """Give a scope a limit of its own, 0 or more tokens; None: back to what the settings say."""
