"""What background work cost and what it saved, by UTC day; the queue and the access log write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerLine:
    """Sums of one UTC day for one context on one kind of machine."""

    day: int
    """Days since 1970-01-01 UTC."""
    tenant: str
    user: str
    context: str
    machine: str
    """The kind of machine: of background work, that of the filling engine; of uses, that of the serving one."""
    background_tokens: int = 0
    """Computed by jobs."""
    background_s: float = 0.0
    """Engine seconds of jobs."""
    fills: int = 0
    """Jobs of kind `fill` that were completed."""
    requests: int = 0
    """Answered requests that named the context."""
    hits: int = 0
    """Of these, those that a fill or a stored answer served, as the engine said."""
    saved_tokens: int = 0
    """Prompt tokens that an engine did not compute, as it said itself."""
    saved_s: float = 0.0
    """Engine seconds that computing them would have taken, less what loading them took."""


class LedgerBook(Protocol):
    """Sums that only grow. Raises StateUnavailable."""

    async def lines(
        self, *, since_day: int, until_day: int, tenant: str | None = None, context: str | None = None
    ) -> list[LedgerLine]:
        """Lines of the days from `since_day` up to and including `until_day`, by day, tenant, context and machine."""

    async def prune(self, *, before_day: int) -> int:
        """Drop lines of earlier days; the number dropped."""
