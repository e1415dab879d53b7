"""Whether a slot is given what is stored, or computes it again: by what either took on this engine so far."""

from __future__ import annotations

from typing import Final

from nightfill.engines.engine import Weighed
from nightfill.kv.worth import LOAD_ANYWAY_AFTER, Rates, worth_loading

LEAST_TOKENS: Final = 128
"""Prompts of which fewer were computed say little of prefill: much of their time goes elsewhere."""

_KEPT_WEIGHT: Final = 0.3
"""Of the newest reply in the smoothed share of tokens that come back."""


class Restores:
    """Weighs loads of one engine, and learns how quick it is. For one event loop."""

    def __init__(self, *, always: bool) -> None:
        """`always`: load whatever is stored; the estimates are made all the same."""
        self._always = always
        self._rates = Rates()
        self._computed_in_a_row = 0
        self._kept_share = 0.0

    def weigh(self, *, load_bytes: int, missing_tokens: int) -> Weighed:
        """Decide between a load of so many bytes and computing the tokens that the slot lacks.

        Where it lacks nothing, nothing is loaded. Now and then a load is tried though computing looks quicker, so that
        a rate which was bad once is seen to be better by now.
        """
        estimate = worth_loading(missing_tokens, load_bytes, self._rates)
        if missing_tokens <= 0 and not self._always:
            return Weighed(load=False, restore_s=estimate.restore_s, recompute_s=0.0)
        load = estimate.restore or self._always or self._computed_in_a_row >= LOAD_ANYWAY_AFTER
        self._computed_in_a_row = 0 if load else self._computed_in_a_row + 1
        return Weighed(load=load, restore_s=estimate.restore_s, recompute_s=estimate.recompute_s)

    def loaded(self, *, nbytes: int, seconds: float) -> None:
        """A load of so many bytes took so long: reading, verifying, the slot file, and the engine's taking it in."""
        self._rates = self._rates.after(load_bytes=nbytes, load_s=seconds)

    def told(self, rates: Rates) -> None:
        """The rates as the engine itself measured them."""
        self._rates = rates

    def lost(self, reply_tokens: int) -> int:
        """Of a reply that a slot holds as it was generated, the tokens that are expected to differ when its text comes
        back: a tokenizer may cut the same text in another way.
        """
        return int((1 - self._kept_share) * reply_tokens)

    def came_back(self, *, kept: int, reply_tokens: int) -> None:
        """So many tokens of a reply were used again."""
        share = min(1.0, max(0.0, kept / reply_tokens))
        self._kept_share += _KEPT_WEIGHT * (share - self._kept_share)

    def computed(self, *, tokens: int, seconds: float) -> None:
        """Computing so much of a prompt took so long."""
        if tokens >= LEAST_TOKENS:
            self._rates = self._rates.after(prefill_tokens=tokens, prefill_s=seconds)
