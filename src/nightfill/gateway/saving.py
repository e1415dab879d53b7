"""What a stored answer spares: the engine time that its making would take now, by rates measured here. Pure."""

from __future__ import annotations

from typing import Final

_WEIGHT: Final = 0.1
"""Of the newest request in the smoothed rates."""
_FEWEST_TOKENS: Final = 4
"""Fewer tell nothing of a rate."""


class Rates:
    """Engine seconds per token, smoothed over the requests that engines served here, by model. For one event loop."""

    def __init__(self) -> None:
        self._prefill_s: dict[str, float] = {}
        self._decode_s: dict[str, float] = {}

    def note(self, model: str, *, computed: int, prefill_s: float, output: int, decode_s: float) -> None:
        """A request computed `computed` tokens of its prompt before its first token, and then `output` tokens.

        Seconds do not count waiting and loading.
        """
        if computed >= _FEWEST_TOKENS and prefill_s > 0:
            _smooth(self._prefill_s, model, prefill_s / computed)
        if output >= _FEWEST_TOKENS and decode_s > 0:
            _smooth(self._decode_s, model, decode_s / output)

    def seconds(self, model: str, *, prompt: int, output: int) -> float:
        """What computing so many tokens would take; what was never measured counts as nothing."""
        return prompt * self._prefill_s.get(model, 0.0) + output * self._decode_s.get(model, 0.0)


def _smooth(rates: dict[str, float], model: str, rate: float) -> None:
    before = rates.get(model)
    rates[model] = rate if before is None else before + _WEIGHT * (rate - before)
