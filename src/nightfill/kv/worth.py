"""Whether to load a stored prefix or to compute it again, from rates measured on this machine.

Restoring takes the tier's latency and `bytes / bandwidth`; computing takes `tokens / prefill rate`. Rates are
exponential averages of what was observed, and unknown until then. Where a rate is unknown, loading is tried: that is
how the rate becomes known. Imports nothing heavy, since it also runs inside the engine's process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

WEIGHT: Final = 0.2
"""Of the newest observation."""
SMALL_BYTES: Final = 1 << 20
"""A load of fewer bytes tells of the latency alone."""
LOAD_ANYWAY_AFTER: Final = 16
"""So many requests in a row were computed since loading looked slower; one is loaded, or nobody would ever notice that
loading has become quick again.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What is known of one tier and one engine; None where nothing is. Finite and at least 0, or above 0 for rates."""

    bytes_per_s: float | None = None
    """Bandwidth of a load, latency taken off."""
    latency_s: float | None = None
    """Of a load, before its bytes flow."""
    tokens_per_s: float | None = None
    """Of prefill."""

    def after(
        self,
        *,
        load_bytes: int = 0,
        load_s: float = 0.0,
        prefill_tokens: int = 0,
        prefill_s: float = 0.0,
    ) -> Rates:
        """The rates after a load, a prefill, or both; what is not positive and finite was not observed."""
        rates = self
        if load_bytes > 0 and _real(load_s):
            rates = rates._after_load(load_bytes, load_s)
        if prefill_tokens > 0 and _real(prefill_s):
            rates = replace(rates, tokens_per_s=_mean(rates.tokens_per_s, prefill_tokens / prefill_s))
        return rates

    def _after_load(self, nbytes: int, seconds: float) -> Rates:
        if nbytes < SMALL_BYTES:
            flowing_s = nbytes / self.bytes_per_s if self.bytes_per_s else 0.0
            return replace(self, latency_s=_mean(self.latency_s, max(0.0, seconds - flowing_s)))
        # At most half of it: a latency that has grown too long must not make the bandwidth endless.
        waiting_s = min(self.latency_s or 0.0, seconds / 2)
        return replace(self, bytes_per_s=_mean(self.bytes_per_s, nbytes / (seconds - waiting_s)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The verdict, and what it rests on."""

    restore_s: float | None
    """Seconds that loading would take; None where the bandwidth is unknown."""
    recompute_s: float | None
    """Seconds that computing would take; None where the prefill rate is unknown."""
    restore: bool
    """Whether to load."""


def worth_loading(tokens: int, nbytes: int, rates: Rates) -> Estimate:
    """Whether to load `nbytes` of KV instead of computing its `tokens`; equally quick means to load."""
    restore_s = None if rates.bytes_per_s is None else (rates.latency_s or 0.0) + nbytes / rates.bytes_per_s
    recompute_s = None if rates.tokens_per_s is None else tokens / rates.tokens_per_s
    restore = restore_s is None or recompute_s is None or restore_s <= recompute_s
    return Estimate(restore_s=restore_s, recompute_s=recompute_s, restore=restore)


def _mean(before: float | None, observed: float) -> float:
    return observed if before is None else before + WEIGHT * (observed - before)


def _real(seconds: float) -> bool:
    return 0 < seconds < math.inf
