"""The Redis tier: blocks on a Redis 7 or Valkey server, shared by processes on several hosts.

One string per block, moved whole by SET and GET over sockets of our own (`kv.resp`); what is known of them lies beside
them (`redis_index`), by the server's clock. Only plain commands and EVAL are used, on keys that share a hash tag.

*Give it a database of its own* and a `maxmemory` above the tier's `max_bytes`. A server that evicts by itself costs
misses, no harm. Blocks have no expiry on the server: one that is pinned may lie unused for as long as it is wanted.

*Pins and values* are this process's own, and not published to others: another process that writes to the same server
evicts by its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nightfill.errors import BadSetting, BlockCorrupt, KvError, TierFull, TierUnavailable
from nightfill.kv.block import HEADER_BYTES
from nightfill.kv.buffer import ALIGNMENT
from nightfill.kv.eviction import Record, Retention, room_for
from nightfill.kv.resp import MAX_VALUE_BYTES, ReplyError, parse_url
from nightfill.kv.resp_pool import Pool
from nightfill.kv.tier import Usage
from nightfill.kv.tiers.redis_index import RedisIndex, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nightfill.config import TierSettings
    from nightfill.kv.buffer import Buffers
    from nightfill.kv.key import BlockKey
    from nightfill.kv.resp import Address
    from nightfill.kv.tier import Spill

_log = logging.getLogger(__name__)

TOUCH_EVERY_S: Final = 60.0
NAME: Final = b"nf:{kv}"
"""Begins all our keys; the braces keep them on one node of a cluster."""
ASK_EVERY_S: Final = 1.0
_ROOMY: Final = 32
"""A cap so many blocks away is not reached by surprise."""
_STAMPS: Final = 1 << 16
"""Blocks of which we remember when we last touched them."""
_CANDIDATES: Final = 128
"""Looked at for eviction at first, and `_MORE` in each further round: most may be pinned."""
_MORE: Final = 2000
_ROUNDS: Final = 100
_LENGTHS: Final = 1000
"""Asked for in one round trip."""


class RedisTier:
    """A `Tier` on a server. Comes up also where the server is out of reach, and fails at once while it is gone.

    `timeout_s` bounds each round trip, and `connections` how many run side by side. `clock` is this host's, in which
    `records` are given; `server_clock` replaces the server's own, for tests. `namespace` begins all keys, has one hash
    tag and nothing that is special in a pattern.
    """

    kind: Final = "redis"
    durable: Final = True

    def __init__(
        self,
        address: Address,
        *,
        name: str = "redis",
        max_bytes: int,
        connections: int = 4,
        timeout_s: float = 5.0,
        buffers: Buffers,
        clock: Callable[[], float],
        server_clock: Callable[[], float] | None = None,
        namespace: bytes = NAME,
    ) -> None:
        self.name: Final = name
        self._pool = Pool(address, name=name, connections=connections, timeout_s=timeout_s)
        self._index = RedisIndex(self._pool, name=namespace, clock=server_clock)
        self._max_bytes = max_bytes
        self._buffers = buffers
        self._clock = clock
        self._lock = threading.Lock()
        """Guards all that follows; never held during I/O."""
        self._stamped: OrderedDict[BlockKey, float] = OrderedDict()
        self._retention = Retention()
        self._spill: Spill | None = None
        self._evicted = 0
        self._known = (0, 0)
        self._slack_bytes = 0
        """Left below the cap after our last write."""
        self._ask_at_s = 0.0
        self._scanning = threading.Lock()

    def read(self, key: BlockKey) -> memoryview | None:
        """See `Tier`."""
        found = self._pool.call([b"GET", self._index.value_key(key)], into=self._room_for)[0]
        if isinstance(found, ReplyError) and found.code == "WRONGTYPE":
            raise BlockCorrupt(f"{self.name}: something else lies where block {key.hex()[:16]} should")
        found = checked(found, self._pool)
        if found is None:
            # Rarely more than a look-up: callers ask for what has a length. Else the server lost it by itself.
            self._index.heal(key)
            return None
        if not isinstance(found, memoryview):
            raise TierUnavailable(f"{self.name}: a reply that nobody expects")
        return found.toreadonly()

    def write(self, key: BlockKey, sealed: memoryview) -> None:
        """See `Tier`."""
        size = len(sealed)
        if size > min(self._max_bytes, MAX_VALUE_BYTES):
            raise TierFull(
                f"{self.name}: a block of {size} bytes is over the cap of {self._max_bytes}, or over the "
                f"{MAX_VALUE_BYTES} bytes that a server takes for one value: smaller blocks fit (`kv.block_tokens`)"
            )
        if not self._is_roomy(size):
            self._make_room(key, size)
        try:
            over_bytes = self._index.commit(key, sealed, max_bytes=self._max_bytes)
            with self._lock:
                self._slack_bytes = -over_bytes
            if over_bytes > 0:
                # Somebody else filled the room that we made.
                self._make_room(key, size)
        except TierFull:
            self._index.drop(key)
            raise
        self._stamp(key)

    def length(self, key: BlockKey) -> int | None:
        """See `Tier`."""
        return self.lengths([key])[0]

    def lengths(self, keys: Sequence[BlockKey]) -> list[int | None]:
        """See `Tier`."""
        found: list[int | None] = []
        for start in range(0, len(keys), _LENGTHS):
            asked = ([b"STRLEN", self._index.value_key(key)] for key in keys[start : start + _LENGTHS])
            for reply in self._pool.call(*asked):
                if isinstance(reply, ReplyError) and reply.code == "WRONGTYPE":
                    found.append(None)
                else:
                    length = checked(reply, self._pool)
                    found.append(length if isinstance(length, int) and length else None)
        return found

    def head(self, key: BlockKey) -> memoryview | None:
        """See `HeadReader`."""
        last = b"%d" % (HEADER_BYTES - 1)
        found = checked(self._pool.call([b"GETRANGE", self._index.value_key(key), b"0", last])[0], self._pool)
        if found == b"":
            return None
        if not isinstance(found, bytes) or len(found) < HEADER_BYTES:
            raise BlockCorrupt(f"{self.name}: block {key.hex()[:16]} is shorter than its header")
        return memoryview(found)

    def touch(self, key: BlockKey) -> None:
        """See `Tier`."""
        if not self._stamp(key):
            return
        try:
            self._index.touch(key)
        except KvError as error:
            _log.debug("%s", error)

    def drop(self, key: BlockKey) -> bool:
        """See `Tier`."""
        dropped = self._index.drop(key)
        with self._lock:
            self._stamped.pop(key, None)
        return dropped

    def pin(self, keys: frozenset[BlockKey]) -> None:
        """See `Tier`."""
        with self._lock:
            self._retention = replace(self._retention, pinned=keys)

    def retain(self, values: Mapping[BlockKey, float], *, guarded: bool) -> None:
        """See `Evictor`."""
        with self._lock:
            self._retention = replace(self._retention, values=dict(values), guarded=guarded)

    def spill_to(self, spill: Spill) -> None:
        """See `Evictor`."""
        self._spill = spill

    def records(self) -> tuple[Record, ...]:
        """See `Tier`. Also brings index and blocks to agree, whatever the server or a dying process left behind."""
        with self._scanning:
            server_s, records = self._index.scan()
        ahead_s = self._clock() - server_s if records else 0.0
        ordered = sorted(records, key=lambda record: record.used_s)
        return tuple(Record(record.key, record.size_bytes, record.used_s + ahead_s) for record in ordered)

    def usage(self) -> Usage:
        """See `Tier`."""
        try:
            self._known = self._index.usage()
        except KvError as error:
            _log.debug("%s", error)
        used_bytes, blocks = self._known
        return Usage(bytes=used_bytes, blocks=blocks, max_bytes=self._max_bytes, evicted=self._evicted)

    def wait_until_up(self, timeout_s: float) -> bool:
        """Wait while the server counts as gone; whether it does not any more."""
        return self._pool.wait_until_up(timeout_s)

    def close(self) -> None:
        """See `Tier`."""
        self._pool.close()

    def _room_for(self, nbytes: int) -> memoryview:
        if not nbytes or nbytes % ALIGNMENT or nbytes > self._max_bytes:
            raise BlockCorrupt(f"{self.name}: a block has {nbytes} bytes, which cannot be right")
        return self._buffers.take(nbytes)

    def _is_roomy(self, size: int) -> bool:
        """Whether there was plenty of room a moment ago, so that a write need not ask first.

        What it then finds filled by others it makes room for afterwards, as always. The index is looked after when it
        asks.
        """
        now_s = time.monotonic()
        with self._lock:
            if self._slack_bytes >= _ROOMY * size and now_s < self._ask_at_s:
                return True
            self._ask_at_s = now_s + ASK_EVERY_S
            return False

    def _make_room(self, key: BlockKey, size: int) -> None:
        """Evict until `size` bytes of `key` fit. Raises TierFull."""
        candidates: list[Record] = []
        spilled: set[BlockKey] = set()
        for _ in range(_ROUNDS):
            # Asked anew each round: others write, drop and use blocks meanwhile.
            count = _MORE if candidates else _CANDIDATES
            room = self._index.room(key, size, max_bytes=self._max_bytes, offset=len(candidates), count=count)
            if not room.scanned and self._scan():
                continue
            if room.need_bytes <= 0:
                return
            candidates += room.candidates
            all_seen = len(room.candidates) < count
            chosen = self._chosen(Record(key, size, 0.0), candidates, room.need_bytes, all_seen=all_seen)
            if chosen:
                self._evict(chosen, spilled)
                candidates.clear()
            elif all_seen:
                break
        raise TierFull(
            f"{self.name}: no room for {size} bytes under a cap of {self._max_bytes}, and nothing that may be evicted"
        )

    def _chosen(
        self, incoming: Record, oldest_first: Sequence[Record], need_bytes: int, *, all_seen: bool
    ) -> Sequence[Record]:
        """What goes; nothing if nothing may, or if that cannot be told before more blocks have been seen."""
        with self._lock:
            retention = self._retention
        chosen = room_for(incoming, oldest_first, short_bytes=need_bytes, retention=retention) or ()
        # Newer blocks may be worth less than these; but what is worth nothing goes before all that is newer.
        if all_seen or not any(retention.values.get(record.key) for record in chosen):
            return chosen
        return ()

    def _evict(self, chosen: Sequence[Record], spilled: set[BlockKey]) -> None:
        leaving = [record for record in chosen if record.key not in spilled]
        if self._spill is not None and leaving:
            self._spill(leaving)
            spilled.update(record.key for record in leaving)
        evicted = self._index.evict(chosen)  # of those that nobody used meanwhile
        with self._lock:
            self._evicted += evicted

    def _scan(self) -> bool:
        """Build the index again, unless another thread is at it; whether that was done."""
        if not self._scanning.acquire(blocking=False):
            return False
        try:
            self._index.scan()
        finally:
            self._scanning.release()
        return True

    def _stamp(self, key: BlockKey) -> bool:
        """Note that the server is told of a use now; False if that would be too soon after the last time."""
        now_s = self._clock()
        with self._lock:
            if now_s - self._stamped.get(key, float("-inf")) < TOUCH_EVERY_S:
                return False
            self._stamped[key] = now_s
            self._stamped.move_to_end(key)
            if len(self._stamped) > _STAMPS:
                self._stamped.popitem(last=False)
        return True


def open_redis_tier(
    wanted: TierSettings,
    *,
    name: str,
    param: str,
    buffers: Buffers,
    clock: Callable[[], float],
    namespace: bytes = NAME,
) -> RedisTier:
    """The tier that settings describe; asks no server yet. Raises BadSetting, which names `param` for a bad URL."""
    if wanted.tenant_max_bytes:
        where = f"{param.removesuffix('url')}tenant_max_bytes"
        raise BadSetting(f"{where}: a redis tier keeps no cap per tenant; set it on tiers of other kinds", param=where)
    return RedisTier(
        parse_url(wanted.url, param=param),
        name=name,
        max_bytes=wanted.max_bytes,
        connections=wanted.connections,
        timeout_s=wanted.timeout_s,
        buffers=buffers,
        clock=clock,
        namespace=namespace,
    )
