"""How much is set aside in the budgets before anybody knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nightfill.contexts.context import Context, Fill, Outline

BYTES_PER_TOKEN: Final = 3
"""Text and code have 3.3 to 4.5 with current models: rather too much is set aside than too little, for what is not
needed returns, and what is computed beyond it is owed all the same.
"""
DISTILLED_AT_LEAST: Final = 2
"""So many times shorter than the text is a distilled version, or more."""


def tokens_to_reserve(context: Context, fill: Fill | Outline | None, *, distilled: bool = False) -> int:
    """Tokens that are still to be computed of the context's current version, or of its distilled one; an estimate while
    nobody asked an engine's tokenizer.
    """
    if fill is None:
        return -(-context.content_bytes // (BYTES_PER_TOKEN * (DISTILLED_AT_LEAST if distilled else 1)))
    return fill.total_tokens - (0 if fill.drifted else fill.stored_tokens)
