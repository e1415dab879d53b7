"""Page-aligned buffers that are used again.

Touching fresh pages costs several times more than copying into pages that are there already (measured: 2 against
22 GB/s in a virtual machine), so a buffer returns to its pool by itself once the last view of it is gone.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections import deque
from typing import Final

from nightfill.errors import TierUnavailable

ALIGNMENT: Final = 4096
"""Address and length of everything that `O_DIRECT` may move."""
_HUGE: Final = 2 << 20


def padded(nbytes: int) -> int:
    """`nbytes`, rounded up to a multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def capacity_for(nbytes: int) -> int:
    """The size class of a buffer of `nbytes`: at most an eighth larger, so that few classes serve all lengths."""
    step = max(ALIGNMENT, 1 << max(nbytes.bit_length() - 4, 0))
    return -(-nbytes // step) * step


class Buffers:
    """A pool of aligned buffers, which keeps at most `max_idle_bytes` of unused ones. Safe to use from any thread."""

    def __init__(self, *, max_idle_bytes: int = 128 << 20) -> None:
        self._max_idle_bytes = max_idle_bytes
        self._idle: dict[int, deque[mmap.mmap]] = {}
        self._idle_bytes = 0
        # Re-entrant, since the garbage collector may end a buffer's last view while this very thread is in here.
        self._lock = threading.RLock()

    @property
    def idle_bytes(self) -> int:
        """Bytes that wait for their next use."""
        return self._idle_bytes

    def take(self, nbytes: int) -> memoryview:
        """A writable view of `nbytes` bytes of undefined content, its address a multiple of `ALIGNMENT`.

        Nobody gives it back: that happens when the last view of it, or of a slice of it, is gone. Raises
        TierUnavailable when there is no memory.
        """
        assert nbytes >= 0
        capacity = capacity_for(max(nbytes, 1))
        pages = self._reuse(capacity) or _fresh(capacity)
        # Views and their slices keep this object alive, and unlike them it can say when it dies.
        owner = (ctypes.c_ubyte * capacity).from_buffer(pages, _start(pages, capacity))
        weakref.finalize(owner, self._give_back, pages, capacity).atexit = False
        return memoryview(owner).cast("B")[:nbytes]

    def _reuse(self, capacity: int) -> mmap.mmap | None:
        with self._lock:
            idle = self._idle.get(capacity)
            if not idle:
                return None
            self._idle_bytes -= capacity
            return idle.pop()

    def _give_back(self, pages: mmap.mmap, capacity: int) -> None:
        with self._lock:
            if self._idle_bytes + capacity <= self._max_idle_bytes:
                self._idle_bytes += capacity
                self._idle.setdefault(capacity, deque()).append(pages)


def _fresh(capacity: int) -> mmap.mmap:
    # Huge pages begin at multiples of their size, and so do large buffers: else up to half of one lies in small pages,
    # which makes copying a fifth slower. What is mapped and never touched takes no memory.
    room = capacity + _HUGE if capacity >= _HUGE else capacity
    try:
        pages = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if capacity >= _HUGE:
            # Only where a whole one is of use: the rest of the last one would be memory for nothing.
            pages.madvise(mmap.MADV_HUGEPAGE, _start(pages, capacity), capacity // _HUGE * _HUGE)
    except OSError as error:
        raise TierUnavailable(f"no memory for a block of {capacity} bytes: {error.strerror}") from error
    return pages


def _start(pages: mmap.mmap, capacity: int) -> int:
    """Where in a mapping of `_fresh` the buffer begins."""
    return -ctypes.addressof(ctypes.c_char.from_buffer(pages)) % _HUGE if capacity >= _HUGE else 0
