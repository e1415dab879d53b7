"""The S3 tier: blocks as objects of a bucket that hosts share.

    prefix/blocks/<2 hex>/<hex of the key>      a sealed block
    prefix/used/<2 hex>/<hex of the key>        empty; its age tells when the block was used last

*How exact the order of eviction is*: uses by this process, to the second; uses by others, to a day, since an object's
date cannot be set, and so a second object is written on use, at most once a day (to copy a block onto itself for a new
date is refused by S3). *How exact the cap is*: the bucket is listed before the first write, and every `refresh_every_s`
from then on; what other processes wrote since is not known and may exceed the cap for so long.

*Pins and values* are this process's own; another process evicts by its own.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nightfill.errors import BadSetting, BlockCorrupt, KvError, TierFull, TierUnavailable
from nightfill.kv.buffer import ALIGNMENT
from nightfill.kv.eviction import Record, Retention, room_for, shortfall
from nightfill.kv.index import Index
from nightfill.kv.key import BlockKey
from nightfill.kv.objects import Objects, parse_address
from nightfill.kv.tier import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nightfill.config import TierSettings
    from nightfill.kv.buffer import Buffers
    from nightfill.kv.objects import Address
    from nightfill.kv.tier import Spill

_log = logging.getLogger(__name__)

REFRESH_EVERY_S: Final = 600.0
STAMP_EVERY_S: Final = 86400.0
_STRIPES: Final = 64
_MAX_SEEN: Final = 1 << 16
_MANY: Final = 1000
"""As many blocks as one request lists."""
_ROUNDS: Final = 100
_PATH: Final = re.compile(r"(?:blocks|used)/[0-9a-f]{2}/([0-9a-f]{64})")


class S3Tier:
    """A `Tier` in a bucket. Comes up also where the store is out of reach, and fails at once while it is gone."""

    kind: Final = "s3"
    durable: Final = True

    def __init__(
        self,
        address: Address,
        *,
        name: str = "s3",
        max_bytes: int,
        connections: int = 4,
        timeout_s: float = 5.0,
        buffers: Buffers,
        clock: Callable[[], float],
        refresh_every_s: float = REFRESH_EVERY_S,
    ) -> None:
        self.name: Final = name
        self._objects = Objects(address, name=name, connections=connections, timeout_s=timeout_s)
        self._max_bytes = max_bytes
        self._buffers = buffers
        self._clock = clock
        self._refresh_every_s = refresh_every_s
        self._askers = ThreadPoolExecutor(connections, thread_name_prefix="kv-s3")
        self._closed = False
        self._room = threading.Lock()
        """One thread at a time lists and makes room. Taken before a stripe, and that before `_lock`."""
        self._stripes = tuple(threading.Lock() for _ in range(_STRIPES))
        """Held while a block is written or deleted, so that the index ends up as the bucket does."""
        self._lock = threading.Lock()
        """Guards all that follows; never held during I/O."""
        self._index = Index()
        self._stamped: dict[BlockKey, float] = {}
        self._seen: set[BlockKey] = set()
        """Keys that were read here and may be missing from the index, which is only made for those who write."""
        self._changed: set[BlockKey] | None = None
        """Keys that we changed while a listing is under way, of which it may have seen either state."""
        self._retention = Retention()
        self._spill: Spill | None = None
        self._reserved_bytes = 0
        self._evicted = 0
        self._listed_at_s = float("-inf")

    def read(self, key: BlockKey) -> memoryview | None:
        """See `Tier`."""
        self._require_open()
        found = self._objects.read(_path(key), self._room_for)
        if found is not None:
            with self._lock:
                if len(self._seen) >= _MAX_SEEN:
                    self._seen.clear()
                self._seen.add(key)
        return found.toreadonly() if found is not None else None

    def write(self, key: BlockKey, sealed: memoryview) -> None:
        """See `Tier`."""
        self._require_open()
        size = len(sealed)
        self._reserve(key, size)
        written = False
        with self._stripe(key):
            try:
                self._objects.write(_path(key), sealed)
                written = True
            finally:
                with self._lock:
                    self._reserved_bytes -= size
                    if written:
                        now_s = self._clock()
                        self._index.put(Record(key, size, now_s))
                        self._stamped[key] = now_s
                        self._mark_changed(key)

    def length(self, key: BlockKey) -> int | None:
        """See `Tier`."""
        self._require_open()
        return self._objects.size(_path(key))

    def lengths(self, keys: Sequence[BlockKey]) -> list[int | None]:
        """See `Tier`. One request a key, side by side; where there are many, the bucket is listed."""
        self._require_open()
        if len(keys) > _MANY:
            with self._room:
                self._list()
            with self._lock:
                found = [self._index.get(key) for key in keys]
            return [record.size_bytes if record else None for record in found]
        try:
            return list(self._askers.map(self.length, keys))
        except RuntimeError as error:
            raise TierUnavailable(f"{self.name} is closed") from error

    def touch(self, key: BlockKey) -> None:
        """See `Tier`."""
        now_s = self._clock()
        with self._lock:
            known = self._index.touch(key, now_s) or key in self._seen
            if self._closed or not known or now_s - self._stamped.get(key, 0.0) < STAMP_EVERY_S:
                return
            self._stamped[key] = now_s
        try:
            self._objects.write(_path(key, "used"), b"")
        except KvError as error:
            _log.debug("%s", error)

    def drop(self, key: BlockKey) -> bool:
        """See `Tier`."""
        self._require_open()
        return self._delete(key)

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
        """See `Tier`. Lists the bucket."""
        self._require_open()
        with self._room:
            self._list()
        with self._lock:
            return tuple(self._index)

    def usage(self) -> Usage:
        """See `Tier`. As last known."""
        with self._lock:
            return Usage(
                bytes=self._index.total_bytes,
                blocks=len(self._index),
                max_bytes=self._max_bytes,
                evicted=self._evicted,
            )

    def close(self) -> None:
        """See `Tier`."""
        self._closed = True
        self._askers.shutdown(wait=True)

    def _reserve(self, key: BlockKey, size: int) -> None:
        """Make room for `size` bytes and hold it. Raises TierFull."""
        if size > self._max_bytes:
            raise TierFull(f"{self.name}: a block of {size} bytes is over the cap of {self._max_bytes}")
        incoming = Record(key, size, self._clock())
        spilled: set[BlockKey] = set()
        for _ in range(_ROUNDS):
            leaving = self._make_room(incoming, spilled)
            if leaving is None:
                return
            if self._spill is not None:
                self._spill(leaving)
            spilled.update(record.key for record in leaving)
        raise TierFull(f"{self.name}: others use what would have to go for {size} bytes")

    def _make_room(self, incoming: Record, spilled: set[BlockKey]) -> Sequence[Record] | None:
        """Hold room, evicting what is in `spilled`; None. Or what is to be spilled before that can be."""
        with self._room:
            if time.monotonic() >= self._listed_at_s + self._refresh_every_s:
                self._list()
            for _ in range(_ROUNDS):
                with self._lock:
                    old = self._index.get(incoming.key)
                    need = shortfall(
                        incoming_bytes=incoming.size_bytes,
                        used_bytes=self._index.total_bytes - (old.size_bytes if old else 0) + self._reserved_bytes,
                        max_bytes=self._max_bytes,
                    )
                    chosen = room_for(incoming, self._index, short_bytes=need, retention=self._retention)
                    if need <= 0:
                        self._reserved_bytes += incoming.size_bytes
                        return None
                if chosen is None:
                    break
                leaving = [record for record in chosen if record.key not in spilled]
                if leaving and self._spill is not None:
                    return leaving
                for record in chosen:
                    gone = self._delete(record.key)
                    with self._lock:
                        self._evicted += gone
        raise TierFull(
            f"{self.name}: no room for {incoming.size_bytes} bytes under a cap of {self._max_bytes}, and nothing may go"
        )

    def _delete(self, key: BlockKey) -> bool:
        with self._stripe(key):
            there = self._objects.size(_path(key)) is not None
            # Asked for also where there is none: a write that nobody heard the answer of may still have come through.
            self._objects.delete([_path(key), _path(key, "used")])
            with self._lock:
                self._index.remove(key)
                self._stamped.pop(key, None)
                self._seen.discard(key)
                self._mark_changed(key)
        return there

    def _list(self) -> None:
        """Bring the index up to date from the bucket. Called with `_room` held."""
        with self._lock:
            self._changed = set()
        try:
            blocks, stamps = self._listing("blocks"), self._listing("used")
            orphans = [_path(key, "used") for key in stamps.keys() - blocks.keys()]
            if orphans:
                self._objects.delete(orphans)
            with self._lock:
                self._merge(blocks, {key: record.used_s for key, record in stamps.items()})
        finally:
            with self._lock:
                self._changed = None
        self._listed_at_s = time.monotonic()

    def _listing(self, kind: str) -> dict[BlockKey, Record]:
        found = {}
        for stored in self._objects.list(kind):
            if match := _PATH.fullmatch(stored.path):
                key = BlockKey(bytes.fromhex(match[1]))
                found[key] = Record(key, stored.size_bytes, stored.modified_s)
        return found

    def _merge(self, blocks: dict[BlockKey, Record], stamps: dict[BlockKey, float]) -> None:
        changed = self._changed or set()
        for key in [record.key for record in self._index]:
            if key not in blocks and key not in changed:
                self._index.remove(key)
                self._stamped.pop(key, None)
        for key, record in blocks.items():
            if key in changed:
                continue
            seen_s = max(record.used_s, stamps.get(key, 0.0))
            old = self._index.get(key)
            # What we know of our own uses is to the moment.
            used_s = max(seen_s, old.used_s) if old else seen_s
            self._index.update(Record(key, record.size_bytes, used_s))
            self._stamped[key] = max(self._stamped.get(key, 0.0), seen_s)
        self._index.sort()

    def _mark_changed(self, key: BlockKey) -> None:
        if self._changed is not None:
            self._changed.add(key)

    def _room_for(self, nbytes: int) -> memoryview:
        if not nbytes or nbytes % ALIGNMENT or nbytes > self._max_bytes:
            raise BlockCorrupt(f"{self.name}: a block has {nbytes} bytes, which cannot be right")
        return self._buffers.take(nbytes)

    def _stripe(self, key: BlockKey) -> threading.Lock:
        return self._stripes[key[0] % _STRIPES]

    def _require_open(self) -> None:
        if self._closed:
            raise TierUnavailable(f"{self.name} is closed")


def open_s3_tier(
    wanted: TierSettings, *, name: str, param: str, buffers: Buffers, clock: Callable[[], float]
) -> S3Tier:
    """The tier that settings describe; asks no server yet. Raises BadSetting, which names `param` for a bad URL."""
    if wanted.tenant_max_bytes:
        where = f"{param.removesuffix('url')}tenant_max_bytes"
        raise BadSetting(f"{where}: an s3 tier keeps no cap per tenant; set it on tiers of other kinds", param=where)
    return S3Tier(
        parse_address(wanted.url, endpoint=wanted.endpoint, region=wanted.region, param=param),
        name=name,
        max_bytes=wanted.max_bytes,
        connections=wanted.connections,
        timeout_s=wanted.timeout_s,
        buffers=buffers,
        clock=clock,
    )


def _path(key: BlockKey, kind: str = "blocks") -> str:
    digits = key.hex()
    return f"{kind}/{digits[:2]}/{digits}"
