"""What eviction in this process is to spare: pins, what is being stored, and what blocks are worth."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nightfill.kv.eviction import Retention
from nightfill.kv.tier import Evictor, Publisher

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nightfill.kv.key import BlockKey
    from nightfill.kv.roles import Roles


class Wanted:
    """Tells all tiers. Safe to use from any thread. Its methods are those of `Store`."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles
        self._publishing = threading.Lock()
        """Keeps what other processes are told in order, and is held meanwhile. Taken before `_lock`."""
        self._lock = threading.Lock()
        """Guards all that follows, and keeps what tiers are told in order."""
        self._pinned: frozenset[BlockKey] = frozenset()
        self._values: Mapping[BlockKey, float] = {}
        self._held: list[tuple[frozenset[BlockKey], float]] = []
        self._tell_values()

    @property
    def pinned(self) -> frozenset[BlockKey]:
        """What `pin` was called with last."""
        return self._pinned

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """See `Store.pin`."""
        with self._lock:
            self._pinned = frozenset(keys)
            self._tell_pins()

    def retain(self, values: Mapping[BlockKey, float]) -> None:
        """See `Store.retain`. Raises ValueError when a value is out of range."""
        if not all(0 <= value < math.inf for value in values.values()):
            raise ValueError("a block's value is negative or not finite")
        with self._lock:
            self._values = dict(values)
            self._tell_values()

    @contextmanager
    def hold(self, keys: Iterable[BlockKey], *, value: float) -> Iterator[None]:
        """See `Store.hold`."""
        held = (frozenset(keys), value)
        with self._lock:
            self._held.append(held)
            self._tell_pins()
            if value:
                self._tell_values()
        try:
            yield
        finally:
            with self._lock:
                self._held.remove(held)
                self._tell_pins()
                if value:
                    self._tell_values()

    def publish(self) -> None:
        """See `Store.publish`."""
        with self._publishing:
            with self._lock:
                wanted = Retention(pinned=self._pinned, values=self._all_values())
            for tier in self._roles.tiers:
                if isinstance(tier, Publisher):
                    tier.publish(wanted)

    def _tell_pins(self) -> None:
        kept = self._pinned.union(*(keys for keys, _ in self._held))
        for tier in self._roles.tiers:
            tier.pin(kept)

    def _all_values(self) -> Mapping[BlockKey, float]:
        values = dict(self._values)
        for keys, value in self._held:
            if value:
                values.update((key, max(value, values.get(key, 0.0))) for key in keys)
        return values

    def _tell_values(self) -> None:
        values = self._all_values()
        for tier in self._roles.tiers:
            if isinstance(tier, Evictor):
                tier.retain(values, guarded=tier in self._roles.keepers)
