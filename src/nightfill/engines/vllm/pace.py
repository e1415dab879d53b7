"""How fast a server computes prompts, learnt from its steps. Pure, but for the clock that its caller reads."""

from __future__ import annotations

from typing import Final

LEAST_TOKENS: Final = 128
"""Steps with fewer tokens are decoding, and say little of prefill."""
_WEIGHT: Final = 0.2


class PrefillPace:
    """Tokens per second of prefill, as an exponential average over engine steps. For one thread."""

    def __init__(self) -> None:
        self._tokens_per_s: float | None = None
        self._under_way: tuple[int, float] | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """None until a step was seen that computed much of a prompt."""
        return self._tokens_per_s

    def begins(self, tokens: int, at_s: float) -> None:
        """A step with so many tokens begins. One that does not end before the next one begins is passed over."""
        self._under_way = (tokens, at_s) if tokens >= LEAST_TOKENS else None

    def ends(self, at_s: float) -> None:
        """The step under way has ended."""
        if self._under_way is None:
            return
        tokens, began_s = self._under_way
        self._under_way = None
        if at_s <= began_s:
            return
        rate = tokens / (at_s - began_s)
        old = self._tokens_per_s
        self._tokens_per_s = rate if old is None else old + _WEIGHT * (rate - old)
