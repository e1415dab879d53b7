"""The store that keeps what is worth most: the most uses expected per second of keeping a block, by its own history."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.simulate.caches import leading
from nightfill.simulate.reuse import Reuse, group_of

if TYPE_CHECKING:
    from nightfill.kv.key import BlockKey
    from nightfill.simulate.block_trace import Request
    from nightfill.simulate.reuse import Cohort


_RESCORED_PART: Final = 16
_RESCORED_LEAST: Final = 128
"""All blocks are scored anew each time that a sixteenth of the store has gone, and at least so many blocks: little work
for each of them, and scores are never old."""


@dataclass(slots=True, eq=False)
class _Block:
    key: BlockKey
    before: _Block | None
    cohort: Cohort
    """Of the last use."""
    group: int = 0
    uses: int = 0
    held_after: int = 0
    """Blocks held that continue this one."""


class Valued:
    """What is worth least goes, of equal worth what was used longest ago, and never a block that another continues.

    A block's worth is `reuse.rates` at its group and age. A prefix is worth at least as much as what continues it,
    since whoever uses the one uses the other. Knows of blocks that went how often they were used. Each eviction costs
    O(log n), amortised. Deterministic.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._reuse = Reuse()
        self._known: dict[BlockKey, _Block] = {}
        self._held: dict[BlockKey, _Block] = {}
        self._least: list[tuple[float, float, BlockKey, Cohort]] = []
        """Worth, last use, key, cohort of what no block held continues; skipped where it has changed since."""
        self._rates = self._reuse.rates()
        self._fresh = 0
        """Evictions until all is scored anew."""

    def serve(self, request: Request) -> int:
        """See `Cache`."""
        hits = leading(request.blocks, self._held.__contains__)
        cohort = self._reuse.cohort(request.at_s)
        block = None
        for place, key in enumerate(request.blocks, start=1):
            block = self._used(key, block, cohort, partial=request.partial and place == len(request.blocks))
        if block is not None and not block.held_after:
            self._push(block)
        while len(self._held) > self._capacity:
            self._evict()
        return hits

    def _used(self, key: BlockKey, before: _Block | None, cohort: Cohort, *, partial: bool) -> _Block:
        block = self._known.get(key)
        if block is None:
            block = self._known[key] = _Block(key, before, cohort)
        else:
            self._reuse.used(block.cohort, block.group)
        block.uses += 1
        block.group = group_of(block.uses, partial=partial)
        block.cohort = cohort
        self._reuse.waits(cohort, block.group)
        if key not in self._held:
            self._held[key] = block
            if before is not None:
                before.held_after += 1
        return block

    def _evict(self) -> None:
        if self._fresh <= 0 or not self._least:
            self._score_all()
        _, _, key, cohort = heapq.heappop(self._least)
        block = self._held.get(key)
        if block is None or block.held_after:
            return
        if block.cohort is not cohort:
            self._push(block)
            return
        del self._held[key]
        self._fresh -= 1
        if block.before is not None:
            block.before.held_after -= 1
            if not block.before.held_after:
                self._push(block.before)

    def _score_all(self) -> None:
        self._rates = self._reuse.rates()
        self._least = [self._scored(block) for block in self._held.values() if not block.held_after]
        heapq.heapify(self._least)
        self._fresh = max(_RESCORED_LEAST, self._capacity // _RESCORED_PART)

    def _scored(self, block: _Block) -> tuple[float, float, BlockKey, Cohort]:
        return self._rates[block.group][block.cohort.age], block.cohort.at_s, block.key, block.cohort

    def _push(self, block: _Block) -> None:
        heapq.heappush(self._least, self._scored(block))
