"""Records of the state as the JSON that people see: over HTTP and from commands, under the same names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from nightfill.contexts.sources import show_source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts.context import Context, Fill, Outline
    from nightfill.state.access import Usage
    from nightfill.state.budgets import BudgetLine
    from nightfill.state.jobs import Job


Known = TypeVar("Known", bound="Fill | Outline")


def fills_of(context: Context, fills: Sequence[Known]) -> list[Known]:
    """The fills of the context's current version and of its distilled one."""
    return [
        fill
        for version in context.versions
        for fill in fills
        if (fill.key.tenant, fill.key.fingerprint) == (context.tenant, version)
    ]


def context_view(context: Context, fills: Sequence[Fill | Outline], usage: Usage | None = None) -> dict[str, Any]:
    """A context with its fills, and how it was used lately where that is known."""
    used: dict[str, Any] = {}
    if usage is not None:
        used = {
            "last_access_at": usage.last_access_s,
            "accesses_7d": usage.accesses_7d,
            "broken_7d": usage.broken_7d,
        }
    return {
        "name": context.name,
        "tenant": context.tenant,
        "user": context.user,
        "fingerprint": context.current,
        "bytes": context.content_bytes,
        "source": show_source(context.source),
        "forms": context.forms,
        "pinned": context.pinned,
        "ttl_s": context.ttl_s,
        "options": msgspec.to_builtins(context.options),
        "distilled": context.distilled,
        "created_at": context.created_at_s,
        "updated_at": context.updated_at_s,
        "checked_at": context.checked_at_s,
        **used,
        "fills": [
            {**fill_view(fill), "distilled": fill.key.fingerprint == context.distilled}
            for fill in fills_of(context, fills)
        ],
    }


def fill_view(fill: Fill | Outline) -> dict[str, Any]:
    """A fill without its tokens."""
    return {
        "form": fill.key.form,
        "signature": fill.key.signature,
        "state": fill.state,
        "stored_tokens": fill.stored_tokens,
        "tokens": fill.total_tokens,
        "filled_at": fill.filled_at_s,
        "fill_seconds": fill.fill_seconds,
        "reason": fill.reason,
    }


def job_view(job: Job) -> dict[str, Any]:
    """A job."""
    return {
        "id": job.id,
        "kind": job.kind,
        "tenant": job.tenant,
        "user": job.user,
        "context": job.label,
        "target": job.target,
        "state": job.state,
        "priority": job.priority,
        "attempts": job.attempts,
        "failures": job.failures,
        "lost": job.lost,
        "not_before": job.not_before_s,
        "done_tokens": job.done_tokens,
        "total_tokens": job.total_tokens,
        "reserved_tokens": job.reserved_tokens,
        "worker": job.worker,
        "error": job.error,
        "note": job.note,
        "created_at": job.created_at_s,
        "updated_at": job.updated_at_s,
    }


def budget_view(line: BudgetLine) -> dict[str, Any]:
    """A budget."""
    return {
        "tenant": line.scope.tenant,
        "user": line.scope.user,
        "period": line.period,
        "limit": line.limit,
        "own": line.own,
        "spent": line.spent,
        "reserved": line.reserved,
        "left": line.left,
        "resets_at": line.resets_at_s,
    }
