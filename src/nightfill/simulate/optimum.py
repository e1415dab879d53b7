"""The clairvoyant optimum: what a store could have kept that knew the whole trace from the start.

MIN (Belady 1966; Mattson et al. 1970) on blocks: all go, the one whose next use is farthest first, and what is never
used again is not kept at all. Between two requests a store holds at most `capacity` blocks, all of the same size, and
only such as some earlier request has brought (on demand). A hit is then an interval between two uses of a block for
which it is kept; a store keeps at most `capacity` intervals at any moment; and to drop the interval that ends last,
whenever there is one too many, leaves most of them: so no store has more hits. It may bypass, which means that a
request's block need not be stored, and so it bounds those stores too that must store everything.

That hits count only as long as nothing before them is missing costs it nothing: who uses a block uses all before it, so
that those are never needed later, and among blocks needed at the same time the deepest goes first. What it holds is
therefore whole prefixes.

Blocks count alike here. In tokens a partial last block saves less than others, so the most that can be saved is bounded
by this many hits of full blocks.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from nightfill.simulate.caches import leading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.kv.key import BlockKey
    from nightfill.simulate.block_trace import Request


class Optimum:
    """See the module. Must be asked to serve the very requests that it was told of."""

    def __init__(self, requests: Sequence[Request], capacity: int) -> None:
        self._capacity = capacity
        self._next_uses = _next_uses(requests)
        self._at = 0
        self._held: dict[BlockKey, int] = {}
        """The request that uses each next."""
        self._farthest: list[tuple[int, int, BlockKey]] = []
        """Next use and place in the prompt, both negated, and key; skipped where the next use has passed."""

    def serve(self, request: Request) -> int:
        """See `Cache`."""
        hits = leading(request.blocks, self._held.__contains__)
        for place, (key, next_use) in enumerate(zip(request.blocks, self._next_uses[self._at], strict=True)):
            if next_use is None:
                self._held.pop(key, None)
            else:
                self._held[key] = next_use
                heapq.heappush(self._farthest, (-next_use, -place, key))
        self._at += 1
        while len(self._held) > self._capacity:
            negated, _, key = heapq.heappop(self._farthest)
            if self._held.get(key) == -negated:
                del self._held[key]
        return hits


def _next_uses(requests: Sequence[Request]) -> list[list[int | None]]:
    """Of each block of each request, the next request that has it."""
    coming: dict[BlockKey, int] = {}
    found: list[list[int | None]] = []
    for at in range(len(requests) - 1, -1, -1):
        found.append([coming.get(key) for key in requests[at].blocks])
        coming.update(dict.fromkeys(requests[at].blocks, at))
    found.reverse()
    return found
