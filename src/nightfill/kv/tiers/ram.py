"""The RAM tier: sealed blocks in this process's own memory, for what was read a moment ago."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from nightfill.errors import TierFull
from nightfill.kv.eviction import Record, shortfall, victims
from nightfill.kv.index import Index
from nightfill.kv.tier import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.kv.key import BlockKey


class RamTier:
    """A `Tier` that holds the very views it is given: nothing is copied in or out.

    Memory of an evicted block returns when its last reader lets go, so a burst of readers may hold more than
    `max_bytes` for a while.
    """

    kind: Final = "ram"
    durable: Final = False

    def __init__(self, *, name: str = "ram", max_bytes: int, clock: Callable[[], float]) -> None:
        self.name: Final = name
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._index = Index()
        self._held: dict[BlockKey, memoryview] = {}
        self._pinned: frozenset[BlockKey] = frozenset()
        self._evicted = 0

    def read(self, key: BlockKey) -> memoryview | None:
        """See `Tier`."""
        with self._lock:
            return self._held.get(key)

    def write(self, key: BlockKey, sealed: memoryview) -> None:
        """See `Tier`."""
        freed: list[memoryview] = []
        with self._lock:
            old = self._index.get(key)
            need = shortfall(
                incoming_bytes=len(sealed),
                used_bytes=self._index.total_bytes - (old.size_bytes if old else 0),
                max_bytes=self._max_bytes,
            )
            others = (record for record in self._index if record.key != key)
            chosen = victims(others, need_bytes=need, pinned=self._pinned)
            if chosen is None:
                raise TierFull(f"{self.name}: no room for {len(sealed)} bytes under a cap of {self._max_bytes}")
            for record in chosen:
                self._index.remove(record.key)
                freed.append(self._held.pop(record.key))
            self._evicted += len(chosen)
            self._index.put(Record(key, len(sealed), self._clock()))
            self._held[key] = sealed.toreadonly()
        # Unmapping takes a while, and so happens here, outside the lock.
        freed.clear()

    def length(self, key: BlockKey) -> int | None:
        """See `Tier`."""
        with self._lock:
            record = self._index.get(key)
            return record.size_bytes if record else None

    def lengths(self, keys: Sequence[BlockKey]) -> list[int | None]:
        """See `Tier`."""
        with self._lock:
            records = [self._index.get(key) for key in keys]
        return [record.size_bytes if record else None for record in records]

    def touch(self, key: BlockKey) -> None:
        """See `Tier`."""
        with self._lock:
            self._index.touch(key, self._clock())

    def drop(self, key: BlockKey) -> bool:
        """See `Tier`."""
        with self._lock:
            held = self._held.pop(key, None)
            self._index.remove(key)
        return held is not None

    def pin(self, keys: frozenset[BlockKey]) -> None:
        """See `Tier`."""
        with self._lock:
            self._pinned = keys

    def records(self) -> tuple[Record, ...]:
        """See `Tier`."""
        with self._lock:
            return tuple(self._index)

    def usage(self) -> Usage:
        """See `Tier`."""
        with self._lock:
            return Usage(
                bytes=self._index.total_bytes,
                blocks=len(self._index),
                max_bytes=self._max_bytes,
                evicted=self._evicted,
            )

    def close(self) -> None:
        """See `Tier`."""
        with self._lock:
            self._held.clear()
            self._index = Index()
