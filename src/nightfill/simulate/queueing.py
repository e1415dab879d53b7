"""How long requests wait for their first token: one queue, first come first served, before engines alike."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """What prefills. The defaults are those of no machine in particular, and are printed with each result."""

    count: int = 8
    prefill_tokens_per_s: float = 8_000
    """Of one engine, which prefills one prompt at a time."""
    load_bytes_per_s: float = 8 * 2**30
    """At which one engine loads stored blocks, before it prefills the rest."""

    def busy_s(self, *, tokens: int, load_bytes: int) -> float:
        """How long one request keeps an engine, until its first token."""
        return tokens / self.prefill_tokens_per_s + load_bytes / self.load_bytes_per_s


def ttfts(jobs: Iterable[tuple[float, float]], engines: int) -> list[float]:
    """Seconds from arrival to first token, for each (arrival, time on an engine), in the order of their arrival."""
    free = [0.0] * engines
    waited = []
    for at_s, busy_s in jobs:
        done_s = max(at_s, free[0]) + busy_s
        heapq.heapreplace(free, done_s)
        waited.append(done_s - at_s)
    return waited
