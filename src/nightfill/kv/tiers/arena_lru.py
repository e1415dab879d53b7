"""Who goes first in an arena, without a list in shared memory that every use would have to lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    from nightfill.kv.key import BlockKey
    from nightfill.kv.tiers.arena_table import Entry, Geometry, Table


class Oldest:
    """The blocks of `table` by last use, sorted once and used up over many evictions.

    Exact all the same: who was used since the sorting has another stamp and is passed over, and so is who went
    meanwhile; who came meanwhile is younger than all in here. Guarded by the arena's lock.
    """

    def __init__(self, table: Table, geometry: Geometry) -> None:
        self._table = table
        self._geometry = geometry
        self._queue: list[Entry] = []
        """The oldest at the end."""

    def victims(self, slabs: int, *, spared: Container[BlockKey], replaced: BlockKey) -> list[Entry] | None:
        """The longest unused blocks that together hold so many slabs; None if all are too few.

        Neither `spared` ones nor `replaced` are among them.
        """
        if slabs <= 0:
            return []
        chosen = self._choose(slabs, spared, replaced)
        if chosen is None:
            self._queue = self._table.entries()[::-1]
            chosen = self._choose(slabs, spared, replaced)
        return chosen

    def _choose(self, slabs: int, spared: Container[BlockKey], replaced: BlockKey) -> list[Entry] | None:
        chosen: list[Entry] = []
        passed: list[Entry] = []
        while slabs > 0 and self._queue:
            entry = self._queue.pop()
            if not self._table.unused_since(entry):
                continue
            if entry.key == replaced or entry.key in spared:
                passed.append(entry)
                continue
            chosen.append(entry)
            slabs -= self._geometry.slabs_for(entry.size_bytes)
        self._queue += reversed(passed)
        return chosen if slabs <= 0 else None
