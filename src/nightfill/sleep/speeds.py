"""How fast the engines are, from what they did: serving ones by the access log, filling ones by their notes. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from nightfill.sleep.autoscale import PACE
from nightfill.sleep.worth import ALIKE, Speeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nightfill.contexts.context import Signature
    from nightfill.state.access import Access
    from nightfill.state.engines import EngineNote

ROWS: Final = 500
"""Of the newest requests that are looked at."""
_FEWEST_TOKENS: Final = 256
"""Computed or loaded at once: with fewer, what every request costs hides what a token does."""
_FEWEST_ROWS: Final = 3


def speeds_of(rows: Sequence[Access], notes: Iterable[EngineNote], *, model: str, signature: Signature) -> Speeds:
    """Of the engines that serve `model`, and of those that fill under `signature`.

    What was not measured yet counts as alike: a fill as fast as a prefill, loading as nothing. Medians, since a first
    token also waits for other requests.
    """
    served = [row for row in rows if row.model == model and row.status == 200 and not row.broken]
    prefill = _median(
        (row.prompt_tokens - row.reused_tokens, row.ttft_s) for row in served if row.layer in ("cold", "prefix")
    )
    restore = _median((row.reused_tokens, row.restore_s) for row in served if row.layer == "fill")
    paces = [pace for note in notes if (pace := _pace(note, signature))]
    fill = statistics.median(paces) if paces else None
    if prefill is None and fill is None:
        return ALIKE
    return Speeds(
        prefill=prefill or fill or ALIKE.prefill, fill=fill or prefill or ALIKE.fill, restore=restore or ALIKE.restore
    )


def _median(pairs: Iterable[tuple[int, float]]) -> float | None:
    found = [tokens / seconds for tokens, seconds in pairs if tokens >= _FEWEST_TOKENS and seconds > 0]
    return statistics.median(found) if len(found) >= _FEWEST_ROWS else None


def _pace(note: EngineNote, signature: Signature) -> float:
    pace = note.body.get(PACE)
    return float(pace) if note.body.get("signature") == signature and isinstance(pace, int) else 0.0
