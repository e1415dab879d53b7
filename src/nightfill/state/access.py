"""What was asked and what served it: the raw material of priorities, proof and the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.contexts.context import ContextName, Fingerprint, Form, Tenant

HISTORY_DAYS: Final = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One request, as it ended. Holds no text."""

    at_s: float
    """Unix seconds of its arrival."""
    tenant: Tenant
    context: ContextName | None
    fingerprint: Fingerprint | None
    form: Form
    model: str
    layer: str
    """`answer`, `fill`, `prefix` or `cold`."""
    prompt_tokens: int
    promised_tokens: int
    """What the plan said the engine would reuse."""
    reused_tokens: int
    """What the engine said it reused."""
    output_tokens: int
    ttft_s: float
    total_s: float
    restore_s: float
    status: int
    broken: bool = False
    """The promise was not kept: the judgement of `gateway.proof`."""
    user: str = ""
    """The context's, for the ledger."""
    machine: str = ""
    """The kind of machine that served it."""
    saved_tokens: int = 0
    """Reused thanks to a fill, as the engine said; of a stored answer, those of its prompt that no fill had."""
    saved_s: float = 0.0
    """Engine seconds that computing these, and what a stored answer says, would have taken, less `restore_s`; not below
    0.
    """
    looked: str = ""
    """What was tried of stored answers, with times: as `answers.look.report` writes it."""


def tells(row: Access) -> bool:
    """Whether it may change what is to be done about its context: what a fill or a stored answer served is filled."""
    return row.context is not None and row.layer not in ("answer", "fill")


def asks(row: Access) -> bool:
    """Whether the model had to be up for it."""
    return row.layer != "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How a context was used lately; the input of the priority policies."""

    last_access_s: float | None
    """Unix seconds; None if never."""
    accesses_7d: int
    """Of the last 168 hours of the clock, the one under way included."""
    broken_7d: int
    """Of these, promises not kept."""
    hours: Mapping[int, int] = field(default_factory=dict)
    """Accesses by hour of the last `HISTORY_DAYS` (Unix seconds // 3600); hours without any are left out."""


class AccessLog(Protocol):
    """Append-only, bounded by age. Safe to share between processes. Raises StateUnavailable."""

    async def append(self, rows: Sequence[Access]) -> None:
        """Write a batch, and add what it saved to the ledger of the same store."""

    async def usage(self, tenant: Tenant, context: ContextName, *, now_s: float) -> Usage:
        """How the context was used up to now. Takes time in proportion to the hours with an access, not to accesses."""

    async def model_hours(self, model: str, *, now_s: float) -> Mapping[int, int]:
        """How often a model of that name was asked, by hour as `Usage.hours`; stored answers did not ask it."""

    async def recent(
        self, *, tenant: Tenant | None = None, context: ContextName | None = None, limit: int = 100
    ) -> list[Access]:
        """The newest rows first."""

    async def prune(self, *, older_than_s: float) -> int:
        """Drop rows older than so many seconds; the number dropped."""
