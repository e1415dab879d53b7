"""The RAM tier that all processes of one host share: a gateway, a worker, several engines.

One file in shared memory, mapped by each of them. A block is written once and read by everybody; it is still there
after a restart of the process that wrote it, until the host restarts. Memory is taken as it is needed, used again
once freed, and never given back before the file is deleted. See `arena_table` for what lies where, and why no reader
sees a torn block; `arena_file` for how it is opened, locked and copied.

*Pins* are this process's own; another process evicts by its own pins.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nightfill.errors import BlockCorrupt, KvError, TierFull, TierUnavailable
from nightfill.kv.block import HEADER_BYTES
from nightfill.kv.buffer import ALIGNMENT
from nightfill.kv.eviction import Record
from nightfill.kv.tier import Usage
from nightfill.kv.tiers.arena_file import arena_path, open_arena, remove_others
from nightfill.kv.tiers.arena_table import Geometry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nightfill.kv.buffer import Buffers
    from nightfill.kv.key import BlockKey
    from nightfill.kv.tiers.arena_file import ArenaFile
    from nightfill.kv.tiers.arena_table import Table

_log = logging.getLogger(__name__)

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - shared memory is what it is for; see `_open_checked`
LOCK_TIMEOUT_S: Final = 1.0
_REST_S: Final = 1.0
"""After a failure to open or lock, calls fail at once for so long."""
_CRAMPED_S: Final = 10.0
"""After a refusal of memory, none is asked for for so long."""
_READ_TRIES: Final = 3
_GROW_SLABS: Final = 32
"""Memory is asked for in pieces of at least so many slabs."""


class ArenaTier:
    """A `Tier` in shared memory, for the processes of one user with the same `data_dir` and `max_bytes`.

    What is read is a copy. Comes up also where there is no shared memory, and tries again with later calls.
    """

    kind: Final = "ram"
    durable: Final = False

    def __init__(
        self,
        *,
        data_dir: Path,
        max_bytes: int,
        buffers: Buffers,
        clock: Callable[[], float],
        name: str = "ram",
        folder: Path = SHARED_MEMORY,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> None:
        self.name: Final = name
        self.path: Final = arena_path(folder, data_dir, max_bytes)
        self._max_bytes = max_bytes
        self._geometry = Geometry.for_cap(max_bytes)
        self._buffers = buffers
        self._clock = clock
        self._lock_timeout_s = lock_timeout_s
        self._arena: ArenaFile | None = None
        self._opening = threading.Lock()
        self._rests_until_s = 0.0
        self._closed = False
        self._evicted = 0
        self._cramped_until_s = 0.0
        self._why = ""
        """Why the arena may not grow, if it may not."""
        self._pinned: frozenset[BlockKey] = frozenset()
        removed = remove_others(self.path)
        if removed:
            _log.info("%s: removed %d arenas of other settings", self.name, removed)
        try:
            self._open()
        except KvError as error:
            _log.warning("%s: starts without shared memory: %s", self.name, error)

    def read(self, key: BlockKey) -> memoryview | None:
        """See `Tier`."""
        return self._read(key, None)

    def head(self, key: BlockKey) -> memoryview | None:
        """See `HeadReader`."""
        return self._read(key, HEADER_BYTES)

    def _read(self, key: BlockKey, at_most: int | None) -> memoryview | None:
        """The first `at_most` bytes of a block, or all of them."""
        arena = self._open()
        for _ in range(_READ_TRIES):
            entry = arena.table.find(key)
            if entry is None:
                return None
            if not entry.size_bytes or entry.size_bytes % ALIGNMENT:
                raise BlockCorrupt(f"{self.name}: a block of {entry.size_bytes} bytes")
            try:
                runs = arena.table.runs(entry)
            except BlockCorrupt:
                if arena.table.unchanged(entry):
                    raise
                continue
            out = self._buffers.take(min(at_most or entry.size_bytes, entry.size_bytes))
            arena.copy_out(runs, out)
            if arena.table.unchanged(entry):
                return out.toreadonly()
        return None

    def write(self, key: BlockKey, sealed: memoryview) -> None:
        """See `Tier`."""
        need = self._geometry.slabs_for(len(sealed))
        if need > self._geometry.slabs:
            raise TierFull(f"{self.name}: a block of {len(sealed)} bytes is over the cap of {self._max_bytes}")
        with self._writing() as (arena, table):
            old = table.find(key)
            own = self._geometry.slabs_for(old.size_bytes) if old else 0
            self._grow(arena, need - own - table.free_slabs)
            victims = arena.oldest.victims(need - own - table.free_slabs, spared=self._pinned, replaced=key)
            if victims is None:
                raise TierFull(f"{self.name}: {self._why_full(len(sealed))}, and nothing that may be evicted")
            with table.changing():
                freed = 0
                for entry in (*victims, *([old] if old else [])):
                    table.remove(entry)
                    freed += self._geometry.slabs_for(entry.size_bytes)
                self._evicted += len(victims)
                runs = table.take(need)
                if freed > need:
                    arena.scrub(table.free_runs(freed - need))
                arena.copy_in(sealed, runs)
                table.add(key, len(sealed), runs, self._now_us())

    def length(self, key: BlockKey) -> int | None:
        """See `Tier`."""
        entry = self._open().table.find(key)
        return entry.size_bytes if entry else None

    def lengths(self, keys: Sequence[BlockKey]) -> list[int | None]:
        """See `Tier`."""
        table = self._open().table
        found = map(table.find, keys)
        return [entry.size_bytes if entry else None for entry in found]

    def touch(self, key: BlockKey) -> None:
        """See `Tier`."""
        try:
            table = self._open().table
        except KvError:
            return  # whoever reads or writes next is told
        entry = table.find(key)
        if entry:
            table.stamp(entry, self._now_us())

    def drop(self, key: BlockKey) -> bool:
        """See `Tier`. Zeroes the bytes."""
        if self._open().table.find(key) is None:
            return False
        with self._writing() as (arena, table):
            entry = table.find(key)
            if entry is None:
                return False
            with table.changing():
                arena.scrub(table.remove(entry))
            return True

    def pin(self, keys: frozenset[BlockKey]) -> None:
        """See `Tier`."""
        self._pinned = keys

    def records(self) -> tuple[Record, ...]:
        """See `Tier`."""
        entries = self._open().table.entries()
        return tuple(Record(entry.key, entry.size_bytes, entry.used_us / 1e6) for entry in entries)

    def usage(self) -> Usage:
        """See `Tier`."""
        used_bytes = blocks = 0
        try:
            table = self._open().table
            used_bytes, blocks = table.used_bytes, table.blocks
        except KvError as error:
            _log.debug("%s", error)
        return Usage(bytes=used_bytes, blocks=blocks, max_bytes=self._max_bytes, evicted=self._evicted)

    def close(self) -> None:
        """See `Tier`. The blocks stay for the other processes, and for the next."""
        self._closed = True
        self._arena = None

    def _open(self) -> ArenaFile:
        """The arena, opened anew if somebody deleted it or cut it short. Raises TierUnavailable."""
        arena = self._arena
        if arena is not None and arena.intact and arena.process == os.getpid():
            return arena
        self._require_rested()
        if not self._opening.acquire(timeout=self._lock_timeout_s):
            raise TierUnavailable(f"{self.name}: another thread is opening {self.path}")
        try:
            if self._closed:
                raise TierUnavailable(f"{self.name} is closed")
            if self._arena is arena or self._arena is None:
                self._arena = None
                with self._resting():
                    self._arena = open_arena(self.path, self._geometry, timeout_s=self._lock_timeout_s)
            return self._arena
        finally:
            self._opening.release()

    @contextmanager
    def _writing(self) -> Iterator[tuple[ArenaFile, Table]]:
        """The arena, locked and in order."""
        arena = self._open()
        self._require_rested()
        with self._resting(), arena.locked(self._lock_timeout_s):
            if arena.table.dirty:
                _log.info("%s: a writer was cut off; rebuilding the table of %s", self.name, self.path)
                self._repair(arena)
            try:
                yield arena, arena.table
            except BlockCorrupt as error:
                self._repair(arena)
                raise TierUnavailable(f"{self.name}: {error}; rebuilt, try again") from error

    def _repair(self, arena: ArenaFile) -> None:
        with arena.table.changing():
            arena.scrub(arena.table.repair())

    def _grow(self, arena: ArenaFile, short: int) -> None:
        """Take more memory, if that is allowed and there is some; else eviction has to make room."""
        grown = arena.table.grown_slabs
        count = min(max(short, _GROW_SLABS), self._geometry.slabs - grown)
        if short <= 0 or count <= 0 or time.monotonic() < self._cramped_until_s:
            return
        try:
            arena.grow(grown, count)
        except TierFull as error:
            self._cramped_until_s = time.monotonic() + _CRAMPED_S
            self._why = str(error)
            _log.warning("%s: %s", self.name, error)
            return
        self._why = ""
        with arena.table.changing():
            arena.table.grow(count)

    def _why_full(self, nbytes: int) -> str:
        return self._why or f"no room for {nbytes} bytes under a cap of {self._max_bytes}"

    @contextmanager
    def _resting(self) -> Iterator[None]:
        """Around what may wait for others: once that was in vain, it is not tried again for a while."""
        try:
            yield
        except TierUnavailable:
            self._rests_until_s = time.monotonic() + _REST_S
            raise

    def _require_rested(self) -> None:
        if time.monotonic() < self._rests_until_s:
            raise TierUnavailable(f"{self.name}: {self.path} failed a moment ago")

    def _now_us(self) -> int:
        return int(self._clock() * 1e6)
