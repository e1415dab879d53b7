"""The disk tier: a folder of blocks that several processes share.

*The file system is the index.* What is held in memory about sizes and uses is a copy, built from the folder alone at
the start and brought up to date before anything is evicted. The clock of LRU is the file's mtime, set on use, at most
once a minute; so another process may take a block for up to a minute older than it is.

*Pins and values* are this process's own, and besides those that one process published to all that share the folder.

*Tenants.* Whose a block is stands in its header, so where tenants have a cap, the headers of blocks that others wrote
are read once, before the first write after they were found.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nightfill.errors import KvError, TierFull
from nightfill.kv.block import NO_OWNER, owner_in
from nightfill.kv.eviction import Record, Retention, room_for, shortfall
from nightfill.kv.index import Index
from nightfill.kv.tier import Usage
from nightfill.kv.tiers.folder import BlockFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from nightfill.kv.buffer import Buffers
    from nightfill.kv.key import BlockKey
    from nightfill.kv.tier import Spill

_log = logging.getLogger(__name__)

TOUCH_EVERY_S: Final = 60.0
_SETTLED_NS: Final = 2_000_000_000
"""A subfolder changed more recently than this may change again within the same tick of the file system's clock."""
_SCAN_SHARE: Final = 50
"""Looking after what other processes wrote takes at most one part in so many of our time."""
_ROUNDS: Final = 100
_SAME_TIME_S: Final = 0.001


class DiskTier:
    """A `Tier` over `BlockFolder`. Comes up also where the folder is out of reach, and tries again with every call.

    `min_free_bytes` is left to others on the file system: our oldest blocks go when there is less. What other
    processes write is noticed within `refresh_every_s`, and may exceed `max_bytes` for so long; 0 means before each
    write, more is stretched for a folder that takes long to list.
    """

    kind: Final = "disk"
    durable: Final = True

    def __init__(
        self,
        root: Path,
        *,
        name: str = "disk",
        max_bytes: int,
        tenant_max_bytes: int = 0,
        min_free_bytes: int = 0,
        write_bytes_per_day: int = 0,
        direct: bool = True,
        buffers: Buffers,
        clock: Callable[[], float],
        refresh_every_s: float = 1.0,
    ) -> None:
        self.name: Final = name
        self._folder = BlockFolder(
            root, name=name, direct=direct, buffers=buffers, write_bytes_per_day=write_bytes_per_day
        )
        self._max_bytes = max_bytes
        self._tenant_max_bytes = tenant_max_bytes
        self._min_free_bytes = min_free_bytes
        self._clock = clock
        self._refresh_every_s = refresh_every_s
        self._lock = threading.Lock()
        """Guards all that follows; never held during I/O."""
        self._index = Index()
        self._stamped: dict[BlockKey, float] = {}
        self._retention = Retention()
        self._unpublished = False
        """Whether `publish` failed last time."""
        self._spill: Spill | None = None
        self._unowned: set[BlockKey] = set()
        """Blocks whose owner is still to be read from their header."""
        self._reserved: Counter[bytes] = Counter()
        """Bytes of writes under way, by owner."""
        self._evicted = 0
        self._changed: set[BlockKey] | None = None
        """Keys that we changed while a scan is under way, of which it may have seen either state."""
        self._room = threading.Lock()
        """One thread at a time makes room."""
        self._scanning = threading.Lock()
        """One thread at a time scans. Taken after `_room`, before `_lock`."""
        self._settled: dict[int, int] = {}
        self._next_refresh_s = 0.0
        self._start()

    def _start(self) -> None:
        try:
            self._folder.prepare()
            orphans = self._folder.clean_drafts(now_s=self._clock())
            self._scan(full=True)
        except KvError as error:
            _log.warning("%s: starts without its folder: %s", self.name, error)
            return
        if orphans:
            _log.info("%s: removed %d drafts that were left behind", self.name, orphans)

    def read(self, key: BlockKey) -> memoryview | None:
        """See `Tier`."""
        found = self._folder.read(key, max_bytes=self._max_bytes)
        self._note(key, found[1] if found else None)
        return found[0] if found else None

    def write(self, key: BlockKey, sealed: memoryview) -> None:
        """See `Tier`."""
        now_s = self._clock()
        incoming = Record(key, len(sealed), now_s, owner_in(sealed))
        self._folder.charge(incoming.size_bytes, now_s=now_s)
        try:
            self._reserve(incoming)
        except KvError:
            self._folder.refund(incoming.size_bytes, now_s=now_s)
            raise
        written = False
        try:
            self._folder.publish(key, sealed, used_s=now_s)
            written = True
        finally:
            with self._lock:
                self._reserved[incoming.owner] -= incoming.size_bytes
                if written:
                    self._index.put(incoming)
                    self._unowned.discard(key)
                    self._stamped[key] = now_s
                    self._mark_changed(key)

    def head(self, key: BlockKey) -> memoryview | None:
        """See `HeadReader`."""
        return self._folder.head(key)

    def length(self, key: BlockKey) -> int | None:
        """See `Tier`."""
        found = self._folder.find(key)
        self._note(key, found)
        return found.size_bytes if found else None

    def lengths(self, keys: Sequence[BlockKey]) -> list[int | None]:
        """See `Tier`."""
        return [self.length(key) for key in keys]

    def touch(self, key: BlockKey) -> None:
        """See `Tier`."""
        now_s = self._clock()
        with self._lock:
            known = self._index.touch(key, now_s)
            if not known or now_s - self._stamped[key] < TOUCH_EVERY_S:
                return
            self._stamped[key] = now_s
        try:
            self._folder.stamp(key, now_s)
        except KvError as error:
            _log.debug("%s", error)

    def drop(self, key: BlockKey) -> bool:
        """See `Tier`."""
        removed = self._folder.remove(key)
        with self._lock:
            self._forget(key)
        return removed

    def pin(self, keys: frozenset[BlockKey]) -> None:
        """See `Tier`."""
        with self._lock:
            self._retention = replace(self._retention, pinned=keys)

    def retain(self, values: Mapping[BlockKey, float], *, guarded: bool) -> None:
        """See `Evictor`."""
        with self._lock:
            self._retention = replace(self._retention, values=values, guarded=guarded)

    def publish(self, retention: Retention) -> None:
        """See `Publisher`."""
        try:
            self._folder.rule(retention, now_s=self._clock())
        except KvError as error:
            # Each upkeep tries again; once is enough to be told.
            _log.log(logging.DEBUG if self._unpublished else logging.WARNING, "%s", error)
            self._unpublished = True
        else:
            self._unpublished = False

    def spill_to(self, spill: Spill) -> None:
        """See `Evictor`."""
        self._spill = spill

    def records(self) -> tuple[Record, ...]:
        """See `Tier`."""
        self._scan(full=True)
        with self._lock:
            return tuple(self._index)

    def usage(self) -> Usage:
        """See `Tier`."""
        free_bytes = None
        try:
            self._refresh()
            free_bytes = self._folder.free_bytes()
        except KvError as error:
            _log.debug("%s", error)
        with self._lock:
            return Usage(
                bytes=self._index.total_bytes,
                blocks=len(self._index),
                max_bytes=self._max_bytes,
                evicted=self._evicted,
                free_bytes=free_bytes,
                direct_io=self._folder.direct,
            )

    def close(self) -> None:
        """See `Tier`."""

    def _reserve(self, incoming: Record) -> None:
        """Make room for a block and hold it. Raises TierFull."""
        spilled: set[BlockKey] = set()
        for _ in range(_ROUNDS):
            leaving = self._make_room(incoming, spilled)
            if leaving is None:
                return
            if self._spill is not None:
                self._spill(leaving)
            spilled.update(record.key for record in leaving)
        raise TierFull(f"{self.name}: others use what would have to go for {incoming.size_bytes} bytes")

    def _make_room(self, incoming: Record, spilled: set[BlockKey]) -> Sequence[Record] | None:
        """Hold room, evicting what is in `spilled`; None. Or what is to be spilled before that can be."""
        with self._room:
            self._refresh()
            self._learn_owners()
            free_bytes = self._folder.free_bytes()
            for _ in range(_ROUNDS):
                # Decided anew each round: others write, drop and use blocks meanwhile.
                retention = self._heeded()
                with self._lock:
                    chosen = self._victims(incoming, free_bytes, retention)
                    if not chosen:
                        self._reserved[incoming.owner] += incoming.size_bytes
                        return None
                leaving = [record for record in chosen if record.key not in spilled]
                if leaving and self._spill is not None:
                    return leaving
                # Counted, not asked again: some file systems are slow to say what is free.
                free_bytes += sum(self._evict_one(record) for record in chosen)
        raise TierFull(f"{self.name}: others use what would have to go for {incoming.size_bytes} bytes")

    def _heeded(self) -> Retention:
        """What eviction heeds now; what others want is not known where the folder does not tell."""
        with self._lock:
            own = self._retention
        try:
            return self._folder.heed(own, now_s=self._clock())
        except KvError as error:
            _log.debug("%s", error)
            return own

    def _victims(self, incoming: Record, free_bytes: int, retention: Retention) -> tuple[Record, ...]:
        size, owner = incoming.size_bytes, incoming.owner
        old = self._index.get(incoming.key)
        old_bytes = old.size_bytes if old else 0
        reserved_bytes = self._reserved.total()
        short_bytes = shortfall(
            incoming_bytes=size,
            used_bytes=self._index.total_bytes - old_bytes + reserved_bytes,
            max_bytes=self._max_bytes,
            free_bytes=free_bytes - reserved_bytes,
            min_free_bytes=self._min_free_bytes,
        )
        owner_short_bytes = 0
        if self._tenant_max_bytes and owner != NO_OWNER:
            owned_bytes = self._index.owned_bytes(owner) - (old_bytes if old and old.owner == owner else 0)
            owner_short_bytes = shortfall(
                incoming_bytes=size,
                used_bytes=owned_bytes + self._reserved[owner],
                max_bytes=self._tenant_max_bytes,
            )
        chosen = room_for(
            incoming,
            self._index,
            short_bytes=short_bytes,
            owner_short_bytes=owner_short_bytes,
            retention=retention,
        )
        if chosen is None:
            of_tenant = f", of {self._tenant_max_bytes} per tenant" if self._tenant_max_bytes else ""
            raise TierFull(
                f"{self.name}: {max(short_bytes, owner_short_bytes)} bytes short under a cap of {self._max_bytes}"
                f"{of_tenant} and a floor of {self._min_free_bytes}, and nothing that may be evicted"
            )
        return chosen

    def _learn_owners(self) -> None:
        """Read from their headers whose blocks are that others wrote, where it matters."""
        if not self._tenant_max_bytes:
            return
        with self._lock:
            unowned = tuple(self._unowned)
        for key in unowned:
            head = self._folder.head(key)
            with self._lock:
                self._unowned.discard(key)
                record = self._index.get(key)
                if record is not None and head is not None:
                    self._index.update(replace(record, owner=owner_in(head)))

    def _evict_one(self, record: Record) -> int:
        """Bytes freed: none when another process used the block since we last looked."""
        found = self._folder.find(record.key)
        if found is not None and found.used_s > record.used_s + _SAME_TIME_S:
            with self._lock:
                self._index.touch(record.key, found.used_s)
            return 0
        removed = found is not None and self._folder.remove(record.key)
        with self._lock:
            self._forget(record.key)
            self._evicted += removed
        return record.size_bytes

    def _refresh(self) -> None:
        """Look after what other processes did, if it is time to."""
        if time.monotonic() >= self._next_refresh_s:
            self._scan(full=False)

    def _scan(self, *, full: bool) -> None:
        """Bring the index up to date: from all subfolders, or from those that changed since they were last read."""
        with self._scanning:
            began_s, now_ns = time.monotonic(), time.time_ns()
            with self._lock:
                self._changed = set()
            try:
                shards = self._folder.shards()
                stale = {shard for shard, mtime_ns in shards.items() if full or self._settled.get(shard) != mtime_ns}
                found = [record for shard in stale for record in self._folder.scan(shard)]
                with self._lock:
                    self._merge(found, rescanned=lambda key: key[0] in stale or key[0] not in shards)
            finally:
                with self._lock:
                    self._changed = None
            self._settled = {shard: at for shard, at in shards.items() if at < now_ns - _SETTLED_NS}
            ended_s = time.monotonic()
            if self._refresh_every_s:
                self._next_refresh_s = ended_s + max(self._refresh_every_s, _SCAN_SHARE * (ended_s - began_s))

    def _merge(self, found: list[Record], *, rescanned: Callable[[BlockKey], bool]) -> None:
        changed = self._changed or set()
        seen = {record.key for record in found}
        known = [record.key for record in self._index]
        for key in known:
            if key not in seen and key not in changed and rescanned(key):
                self._forget(key)
        for record in found:
            if record.key not in changed:
                old = self._index.get(record.key)
                used_s = max(record.used_s, old.used_s) if old else record.used_s
                if old is None:
                    self._unowned.add(record.key)
                owner = old.owner if old else record.owner
                self._index.update(replace(record, used_s=used_s, owner=owner))
                self._stamped[record.key] = record.used_s
        self._index.sort()

    def _note(self, key: BlockKey, found: Record | None) -> None:
        """What a look at one file told."""
        with self._lock:
            known = key in self._index
            if found is None and known:
                self._forget(key)
            elif found is not None and not known:
                self._index.put(found)
                self._unowned.add(key)
                self._stamped[key] = found.used_s
                self._mark_changed(key)

    def _forget(self, key: BlockKey) -> None:
        self._index.remove(key)
        self._stamped.pop(key, None)
        self._unowned.discard(key)
        self._mark_changed(key)

    def _mark_changed(self, key: BlockKey) -> None:
        if self._changed is not None:
            self._changed.add(key)
