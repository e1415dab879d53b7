"""Stores of a fixed number of blocks, at least 1, that a trace is replayed against, each with its own rule.

All of them count and keep alike: a hit is a block of the prompt that is held and before which all are held, looked up
before anything moves; then all blocks of the prompt have been used, first to last, and those that were missing are
stored. What does not fit goes by the rule.
"""

from __future__ import annotations

import heapq
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from nightfill.kv.eviction import Record, Retention, room_for, shortfall
from nightfill.kv.index import Index

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.kv.key import BlockKey
    from nightfill.simulate.block_trace import Request


class Cache(Protocol):
    """One store. Requests come in the order of the trace, each once."""

    def serve(self, request: Request) -> int:
        """The number of hits; afterwards the request's blocks have been used and stored."""


def leading(blocks: Sequence[BlockKey], held: Callable[[BlockKey], bool]) -> int:
    """How many blocks are held before the first that is not."""
    return sum(1 for _ in takewhile(held, blocks))


class Unlimited:
    """Nothing ever goes: what is missed was never asked for before."""

    def __init__(self) -> None:
        self._held: set[BlockKey] = set()

    def serve(self, request: Request) -> int:
        """See `Cache`."""
        hits = leading(request.blocks, self._held.__contains__)
        self._held.update(request.blocks)
        return hits


class Lru:
    """What was used longest ago goes: the index and the eviction of the store's own tiers, nothing pinned or valued."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._index = Index()
        self._retention = Retention()

    def serve(self, request: Request) -> int:
        """See `Cache`."""
        index = self._index
        hits = leading(request.blocks, index.__contains__)
        for key in request.blocks:
            if index.touch(key, request.at_s):
                continue
            incoming = Record(key, 1, request.at_s)
            short = shortfall(incoming_bytes=1, used_bytes=index.total_bytes, max_bytes=self._capacity)
            for record in room_for(incoming, index, short_bytes=short, retention=self._retention) or ():
                index.remove(record.key)
            index.put(incoming)
        return hits


class Lfu:
    """What was used least often goes, of these what was used longest ago.

    Uses are counted while a block is held. With `perfect` they are counted for ever, as if memory for counts were free.
    """

    def __init__(self, capacity: int, *, perfect: bool = False) -> None:
        self._capacity = capacity
        self._perfect = perfect
        self._uses: dict[BlockKey, int] = {}
        self._held: dict[BlockKey, int] = {}
        """When each was used last, in uses of any block."""
        self._least: list[tuple[int, int, BlockKey]] = []
        """Uses, last use, key; what no longer agrees with the block is skipped."""
        self._now = 0

    def serve(self, request: Request) -> int:
        """See `Cache`."""
        hits = leading(request.blocks, self._held.__contains__)
        for key in request.blocks:
            if key not in self._held and len(self._held) == self._capacity:
                self._evict()
            self._now += 1
            self._uses[key] = self._uses.get(key, 0) + 1
            self._held[key] = self._now
            heapq.heappush(self._least, (self._uses[key], self._now, key))
        return hits

    def _evict(self) -> None:
        while True:
            _, used, key = heapq.heappop(self._least)
            if self._held.get(key) == used:
                del self._held[key]
                if not self._perfect:
                    del self._uses[key]
                return
