"""What was asked and what served it: the raw material of priorities, proof and the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts.context import ContextName, Fingerprint, Form, Tenant


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How a context was used lately; the input of the priority policies."""

    last_access_s: float | None
    """Unix seconds; None if never."""
    accesses_7d: int
    broken_7d: int
    """Promises not kept."""


class AccessLog(Protocol):
    """Append-only, bounded by age. Safe to share between processes. Raises StateUnavailable."""

    async def append(self, rows: Sequence[Access]) -> None:
        """Write a batch."""

    async def usage(self, tenant: Tenant, context: ContextName, *, now_s: float) -> Usage:
        """How the context was used up to now."""

    async def recent(
        self, *, tenant: Tenant | None = None, context: ContextName | None = None, limit: int = 100
    ) -> list[Access]:
        """The newest rows first."""

    async def prune(self, *, older_than_s: float) -> int:
        """Drop rows older than so many seconds; the number dropped."""
