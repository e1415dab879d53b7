"""The RAM tier: sealed blocks in this process's own memory, for what was read a moment ago."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nightfill.errors import TierFull
from nightfill.kv.block import HEADER_BYTES, NO_OWNER, owner_in
from nightfill.kv.eviction import Record, Retention, room_for, shortfall
from nightfill.kv.index import Index
from nightfill.kv.tier import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nightfill.kv.key import BlockKey
    from nightfill.kv.tier import Spill

_ROUNDS: Final = 8
"""So often what is to be evicted is offered to others first, before it just goes."""


class RamTier:
    """A `Tier` that holds the very views it is given: nothing is copied in or out.

    Memory of an evicted block returns when its last reader lets go, so a burst of readers may hold more than
    `max_bytes` for a while.
    """

    kind: Final = "ram"
    durable: Final = False

    def __init__(
        self, *, name: str = "ram", max_bytes: int, tenant_max_bytes: int = 0, clock: Callable[[], float]
    ) -> None:
        self.name: Final = name
        self._max_bytes = max_bytes
        self._tenant_max_bytes = tenant_max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._index = Index()
        self._held: dict[BlockKey, memoryview] = {}
        self._retention = Retention()
        self._spill: Spill | None = None
        self._evicted = 0

    def read(self, key: BlockKey) -> memoryview | None:
        """See `Tier`."""
        with self._lock:
            return self._held.get(key)

    def head(self, key: BlockKey) -> memoryview | None:
        """See `HeadReader`."""
        found = self.read(key)
        return None if found is None else found[:HEADER_BYTES]

    def write(self, key: BlockKey, sealed: memoryview) -> None:
        """See `Tier`."""
        incoming = Record(key, len(sealed), self._clock(), owner_in(sealed))
        spilled: set[BlockKey] = set()
        for left in reversed(range(_ROUNDS)):
            freed: list[memoryview] = []
            with self._lock:
                chosen = self._victims(incoming)
                leaving = [record for record in chosen if record.key not in spilled]
                spill = self._spill if left else None
                if not leaving or spill is None:
                    for record in chosen:
                        self._index.remove(record.key)
                        freed.append(self._held.pop(record.key))
                    self._evicted += len(chosen)
                    self._index.put(incoming)
                    self._held[key] = sealed.toreadonly()
                    break
            # Decided anew afterwards: others write, drop and use blocks meanwhile.
            spill(leaving)
            spilled.update(record.key for record in leaving)
        # Unmapping takes a while, and so happens here, outside the lock.
        freed.clear()

    def _victims(self, incoming: Record) -> tuple[Record, ...]:
        old = self._index.get(incoming.key)
        old_bytes = old.size_bytes if old else 0
        short_bytes = shortfall(
            incoming_bytes=incoming.size_bytes,
            used_bytes=self._index.total_bytes - old_bytes,
            max_bytes=self._max_bytes,
        )
        owner_short_bytes = 0
        if self._tenant_max_bytes and incoming.owner != NO_OWNER:
            owner_short_bytes = shortfall(
                incoming_bytes=incoming.size_bytes,
                used_bytes=self._index.owned_bytes(incoming.owner) - old_bytes,
                max_bytes=self._tenant_max_bytes,
            )
        chosen = room_for(
            incoming,
            self._index,
            short_bytes=short_bytes,
            owner_short_bytes=owner_short_bytes,
            retention=self._retention,
        )
        if chosen is None:
            of_tenant = f", {self._tenant_max_bytes} per tenant" if self._tenant_max_bytes else ""
            raise TierFull(
                f"{self.name}: no room for {incoming.size_bytes} bytes under a cap of {self._max_bytes}{of_tenant}"
            )
        return chosen

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
            self._retention = replace(self._retention, pinned=keys)

    def retain(self, values: Mapping[BlockKey, float], *, guarded: bool) -> None:
        """See `Evictor`."""
        with self._lock:
            self._retention = replace(self._retention, values=values, guarded=guarded)

    def spill_to(self, spill: Spill) -> None:
        """See `Evictor`."""
        self._spill = spill

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
