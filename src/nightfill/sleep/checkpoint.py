"""When a fill stores what it has computed."""

from __future__ import annotations

from typing import Final

SAVE_SHARE: Final = 1 / 20
"""Saving takes at most so much of the time: it writes the whole slot, so a long prefix is saved less often."""
LONG_CLOSED_S: Final = 5.0
"""A gate closed for so long is a good moment to store what would be lost with the worker."""
STOP_SHARE: Final = 0.5
"""Of its grace, for a worker that was asked to stop to store what it has; the rest is for its lease and its engines."""


def save_due(*, computed_s: float, last_save_s: float, every_s: float) -> bool:
    """Whether to store now, after `computed_s` engine seconds since the last save, which took `last_save_s`.

    Never more often than every `every_s` (a slice's cap), and less often where saving is slow. What a killed worker
    loses is bounded by the larger of the two.
    """
    return computed_s > 0 and computed_s >= max(every_s, last_save_s / SAVE_SHARE)
