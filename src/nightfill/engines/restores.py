"""Whether a slot is given what is stored, or computes it again: by what either took on this engine so far."""

from __future__ import annotations

from typing import Final

from nightfill.engines.engine import Weighed
from nightfill.kv.worth import LOAD_ANYWAY_AFTER, Rates, worth_loading

LEAST_TOKENS: Final = 128
"""Prompts of which fewer were computed say little of prefill: much of their time goes elsewhere."""


class Restores:
    """Weighs loads of one engine, and learns how quick it is. For one event loop."""

    def __init__(self, *, always: bool) -> None:
        """`always`: load whatever is stored; the estimates are made all the same."""
        self._always = always
        self._rates = Rates()
        self._computed_in_a_row = 0

    def weigh(self, *, load_bytes: int, missing_tokens: int) -> Weighed:
        """Decide between a load of so many bytes and computing the tokens that the slot lacks.

        Now and then a load is tried though computing looks quicker, so that a rate which was bad once is seen to be
        better by now.
        """
        estimate = worth_loading(missing_tokens, load_bytes, self._rates)
        load = estimate.restore or self._always or self._computed_in_a_row >= LOAD_ANYWAY_AFTER
        self._computed_in_a_row = 0 if load else self._computed_in_a_row + 1
        return Weighed(load=load, restore_s=estimate.restore_s, recompute_s=estimate.recompute_s)

    def loaded(self, *, nbytes: int, seconds: float) -> None:
        """A load of so many bytes took so long: reading, verifying, the slot file, and the engine's taking it in."""
        self._rates = self._rates.after(load_bytes=nbytes, load_s=seconds)

    def told(self, rates: Rates) -> None:
        """The rates as the engine itself measured them."""
        self._rates = rates

    def computed(self, *, tokens: int, seconds: float) -> None:
        """Computing so much of a prompt took so long."""
        if tokens >= LEAST_TOKENS:
            self._rates = self._rates.after(prefill_tokens=tokens, prefill_s=seconds)
