"""Keeps what is deleted from coming back: a block may be on its way from one tier to another while it is deleted."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from nightfill.kv.key import BlockKey


class Copy:
    """A block on its way. Whoever writes it looks at `cancelled` afterwards; if it is set, it drops what it wrote."""

    __slots__ = ("cancelled",)

    def __init__(self, *, cancelled: bool) -> None:
        self.cancelled = cancelled


class Deletions:
    """Copies and deletions under way in this process. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: dict[BlockKey, list[Copy]] = {}
        self._deleting: Counter[BlockKey] = Counter()

    @contextmanager
    def copy(self, key: BlockKey) -> Iterator[Copy]:
        """Around a copy, from before the block is read until it is written."""
        with self._lock:
            copy = Copy(cancelled=key in self._deleting)
            self._copies.setdefault(key, []).append(copy)
        try:
            yield copy
        finally:
            with self._lock:
                copies = self._copies[key]
                copies.remove(copy)
                if not copies:
                    del self._copies[key]

    @contextmanager
    def of(self, keys: Collection[BlockKey]) -> Iterator[None]:
        """Around a deletion. Copies that began before, and those that begin meanwhile, are cancelled."""
        with self._lock:
            self._deleting.update(keys)
            for key in keys:
                for copy in self._copies.get(key, ()):
                    copy.cancelled = True
        try:
            yield
        finally:
            with self._lock:
                for key in keys:
                    self._deleting[key] -= 1
                    if not self._deleting[key]:
                        del self._deleting[key]
