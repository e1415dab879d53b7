"""How long a server's prefill steps take. Pure, but for the clock that its caller reads."""

from __future__ import annotations

from typing import Final

LEAST_TOKENS: Final = 128
"""Steps with fewer tokens are decoding, and say little of prefill."""


class PrefillSteps:
    """Times engine steps that compute much of a prompt. For one thread."""

    def __init__(self) -> None:
        self._under_way: tuple[int, float] | None = None

    def begins(self, tokens: int, at_s: float) -> None:
        """A step with so many tokens begins. One that does not end before the next one begins is passed over."""
        self._under_way = (tokens, at_s) if tokens >= LEAST_TOKENS else None

    def ends(self, at_s: float) -> tuple[int, float]:
        """The step under way has ended: its tokens and seconds; (0, 0.0) for one that says nothing."""
        if self._under_way is None:
            return 0, 0.0
        tokens, began_s = self._under_way
        self._under_way = None
        return (tokens, at_s - began_s) if at_s > began_s else (0, 0.0)
