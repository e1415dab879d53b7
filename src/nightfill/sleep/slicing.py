"""How many tokens the next slice of a fill computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

HARM_SHARE: Final = 0.1
"""A slice that cannot be frozen may hold up a live request by so much of the live time to first token."""
BLIND_S: Final = 0.05
"""Length of such a slice while no live time to first token is known."""
NEWEST_WEIGHT: Final = 0.5
"""Of the newest slice in the smoothed speed. High, because speed falls as the prefix grows, and slices are few."""
GROWTH: Final = 4
"""A slice is at most so many times as long as the one before: one lucky figure must not make a huge slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceSizer:
    """Sizes slices from the speed of those before. Frozen: `after` gives the next one.

    Tokens are clamped to `min_tokens` and `max_tokens`, seconds to `max_s`.
    """

    min_tokens: int
    max_tokens: int
    max_s: float
    speed_tps: float = 0.0
    """Smoothed tokens per second; 0 while unknown."""
    last_tokens: int = 0

    def after(self, *, tokens: int, seconds: float) -> SliceSizer:
        """The sizer that also knows a slice of so many computed tokens in so much engine time."""
        if tokens <= 0 or seconds <= 0:
            return self
        newest_tps = tokens / seconds
        speed_tps = newest_tps
        if self.speed_tps > 0:
            speed_tps = self.speed_tps + NEWEST_WEIGHT * (newest_tps - self.speed_tps)
        return replace(self, speed_tps=speed_tps, last_tokens=tokens)

    def next_tokens(self, *, freezes: bool, live_ttft_s: float) -> int:
        """Tokens of the next slice. `freezes`: a live request can stop it where it stands. `live_ttft_s` 0: unknown."""
        if self.speed_tps <= 0:
            return self.min_tokens
        seconds = self.max_s
        if not freezes:
            seconds = min(seconds, HARM_SHARE * live_ttft_s if live_ttft_s > 0 else BLIND_S)
        tokens = min(int(self.speed_tps * seconds), self.max_tokens, GROWTH * max(self.last_tokens, self.min_tokens))
        return max(tokens, self.min_tokens)
