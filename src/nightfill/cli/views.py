"""What commands print of a plan and of a fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nightfill.contexts.context import FillState

if TYPE_CHECKING:
    from nightfill.contexts.context import Context, Fill
    from nightfill.sleep.plan import PlanLine


def plan_view(line: PlanLine) -> dict[str, Any]:
    """A line of the plan."""
    return {
        "context": line.context,
        "tenant": line.tenant,
        "user": line.user,
        "form": line.form,
        "engine": line.engine,
        "verdict": line.verdict,
        "priority": line.priority,
        "total_tokens": line.total_tokens,
        "missing_tokens": line.missing_tokens,
        "why": line.why,
    }


def show_fill(fill: Fill, context: Context | None = None) -> str:
    """`chat ready 6,120`, `chat filling 512/6,120`, `distilled chat stale 6,120`."""
    distilled = "distilled " if context is not None and fill.key.fingerprint == context.distilled else ""
    total = len(fill.tokens)
    share = f"{fill.stored_tokens:,}/{total:,}" if fill.stored_tokens < total else f"{total:,}"
    reason = f" ({fill.reason})" if fill.reason and fill.state is not FillState.READY else ""
    return f"{distilled}{fill.key.form} {fill.state} {share}{reason}"
