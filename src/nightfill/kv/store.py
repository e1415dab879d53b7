"""The store: blocks over all tiers. Written through to what is durable, promoted to what is fast, verified on read."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.errors import BlockCorrupt, KvError, TierFull, TierUnavailable
from nightfill.kv.block import sealed_bytes
from nightfill.kv.eviction import expired, unwanted
from nightfill.kv.report import StoreReport, TierReport

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from nightfill.kv.block import Block, BlockMeta
    from nightfill.kv.key import BlockKey, Span
    from nightfill.kv.seal import Sealer
    from nightfill.kv.tier import Tier

_log = logging.getLogger(__name__)

READ_THREADS: Final = 4
GRACE_S: Final = 600.0
_LOG_EVERY_S: Final = 60.0


@dataclass(slots=True)
class _Counts:
    """What happened on one tier. Guarded by the store's lock."""

    hits: int = 0
    misses: int = 0
    corrupt: int = 0
    errors: int = 0
    expired: int = 0
    written: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    last_error: str | None = None
    last_error_at_s: float | None = None
    logged_at_s: float = float("-inf")


class Store:
    """Blocks by key over `tiers`, fastest first. Safe to use from any thread; blocks its caller, so no event loop's.

    Blocks are written to every *home*: the durable tiers, or where there is none, all. The others hold copies of what
    was read lately. `ttl_s` counts from the last use; `clock` gives Unix seconds.
    """

    def __init__(
        self, tiers: Sequence[Tier], sealer: Sealer, *, ttl_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        assert len({tier.name for tier in tiers}) == len(tiers)
        self._tiers = tuple(tiers)
        self._homes = tuple(tier for tier in tiers if tier.durable) or self._tiers
        self._sealer = sealer
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = {tier.name: _Counts() for tier in tiers}
        self._pinned: frozenset[BlockKey] = frozenset()
        self._held: list[frozenset[BlockKey]] = []
        self._deletions = 0
        """How many calls that delete have begun, and `_deleting`, how many have not ended: so that what was read just
        before it was deleted is not promoted just after."""
        self._deleting = 0
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="kv-read")
        self._closed = False

    def put(self, key: BlockKey, payload: Sequence[Buffer], meta: BlockMeta, *, salt: bytes, hot: bool = False) -> None:
        """Store the concatenation of `payload`, C-contiguous buffers, which are read once and not kept.

        Every home gets it, and the faster tiers too if `hot`. Where it is already, this only counts as a use: one key
        has one content. Raises TierFull or TierUnavailable when no home took it.
        """
        self._require_open()
        views = [memoryview(part) for part in payload]
        parts = [view.cast("B") for view in views if view.nbytes]
        length = sealed_bytes(sum(map(len, parts)))
        sealed: memoryview | None = None
        failure: KvError | None = None
        held = False
        # Homes first: a fast tier must not hold what no home has.
        for tier in (*self._homes, *(self._caches() if hot else ())):
            home = tier in self._homes
            if not home and not held:
                break
            try:
                if tier.length(key) == length:
                    tier.touch(key)
                else:
                    sealed = sealed or self._sealer.seal(key, meta, parts, salt=salt)
                    tier.write(key, sealed)
                    self._count(tier, written=1, written_bytes=len(sealed))
                held = held or home
            except KvError as error:
                failure = error
                if home or not isinstance(error, TierFull):
                    self._failed(tier, error)
        if not held:
            raise failure or TierUnavailable("the store has no tier")

    def get(self, key: BlockKey, *, salt: bytes) -> Block | None:
        """The block, verified, from the fastest tier that has it; faster ones get a copy. Never raises KvError.

        A copy that does not verify is counted and dropped, and the next tier is asked.
        """
        block = self._get(key, salt)
        if block is not None:
            self._touch(key)
        return block

    def get_many(self, keys: Sequence[BlockKey], *, salt: bytes) -> list[Block | None]:
        """`get` for each key, in the order given; reads run side by side."""
        if len(keys) < 2 or self._closed:
            blocks = [self._get(key, salt) for key in keys]
        else:
            try:
                blocks = list(self._readers.map(lambda key: self._get(key, salt), keys))
            except RuntimeError:
                if not self._closed:
                    raise
                return [None] * len(keys)
        # Backwards, so that of one prefix its end is evicted first: the front is of use without it, not vice versa.
        for key, block in zip(reversed(keys), reversed(blocks), strict=True):
            if block is not None:
                self._touch(key)
        return blocks

    def has(self, key: BlockKey) -> bool:
        """Whether some tier seems to have it, by name alone: no bytes are read. Never raises KvError."""
        for tier in self._tiers:
            try:
                if tier.length(key) is not None:
                    return True
            except KvError as error:
                self._failed(tier, error)
        return False

    def leading(self, spans: Sequence[Span]) -> int:
        """How many of `spans`, from the first on, are there without a gap; as `has`."""
        for count, span in enumerate(spans):
            if not self.has(span.key):
                return count
        return len(spans)

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Replace the set of keys that neither eviction nor expiry takes, as far as this process is concerned."""
        with self._lock:
            self._pinned = frozenset(keys)
            self._apply_pins()

    @contextmanager
    def hold(self, keys: Iterable[BlockKey]) -> Iterator[None]:
        """Keep eviction in this process off `keys` while inside, as if pinned.

        For whoever stores a prefix: its end is of no use without its beginning, and must not push that out.
        """
        held = frozenset(keys)
        with self._lock:
            self._held.append(held)
            self._apply_pins()
        try:
            yield
        finally:
            with self._lock:
                self._held.remove(held)
                self._apply_pins()

    def _apply_pins(self) -> None:
        kept = self._pinned.union(*self._held)
        for tier in self._tiers:
            tier.pin(kept)

    def drop(self, keys: Iterable[BlockKey]) -> int:
        """Delete blocks, pinned or not, from all tiers; how many were there.

        Copies in the RAM of other processes go with their next `sweep`. Raises TierUnavailable, after all else is
        deleted, when a tier could not be asked: deletion must be complete, so ask again.
        """
        failure: KvError | None = None
        dropped = set()
        with self._deletion():
            for key in keys:
                for tier in self._tiers:
                    try:
                        if tier.drop(key):
                            dropped.add(key)
                    except KvError as error:
                        self._failed(tier, error)
                        failure = error
        if failure:
            raise failure
        return len(dropped)

    def sweep(self, keep: Collection[BlockKey] | None = None, *, grace_s: float = GRACE_S) -> int:
        """Delete what is expired, and if `keep` is given, what is not in it and unused for `grace_s`; how many.

        `keep` covers everything that anybody refers to; pass a set. Copies whose home lost the block go too. A tier
        that fails is left for the next time.
        """
        now_s = self._clock()
        gone: set[BlockKey] = set()
        with self._deletion():
            for tier in self._homes:
                try:
                    records = tier.records()
                    doomed = expired(records, now_s=now_s, ttl_s=self._ttl_s, pinned=self._pinned)
                    if keep is not None:
                        doomed += unwanted(records, keep=keep, now_s=now_s, grace_s=grace_s)
                    gone |= self._expire(tier, {record.key for record in doomed})
                except KvError as error:
                    self._failed(tier, error)
            for tier in self._caches():
                try:
                    self._expire(tier, {record.key for record in tier.records() if not self._at_home(record.key)})
                except KvError as error:
                    self._failed(tier, error)
        return len(gone)

    def report(self) -> StoreReport:
        """Tiers and counters as they are now."""
        usages = [tier.usage() for tier in self._tiers]
        with self._lock:
            return StoreReport(
                tiers=tuple(
                    TierReport(
                        name=tier.name,
                        kind=tier.kind,
                        durable=tier.durable,
                        bytes=usage.bytes,
                        blocks=usage.blocks,
                        max_bytes=usage.max_bytes,
                        free_bytes=usage.free_bytes,
                        direct_io=usage.direct_io,
                        hits=counts.hits,
                        misses=counts.misses,
                        corrupt=counts.corrupt,
                        errors=counts.errors,
                        last_error=counts.last_error,
                        last_error_at_s=counts.last_error_at_s,
                        evicted=usage.evicted,
                        expired=counts.expired,
                        written=counts.written,
                        written_bytes=counts.written_bytes,
                        read_bytes=counts.read_bytes,
                    )
                    for tier, usage, counts in zip(self._tiers, usages, self._counts.values(), strict=True)
                ),
                pinned=len(self._pinned),
                encrypted=self._sealer.encrypts,
            )

    def close(self) -> None:
        """Wait for reads under way and let go of memory. Later `put`s raise, later `get`s miss. Idempotent."""
        self._closed = True
        self._readers.shutdown(wait=True)
        for tier in self._tiers:
            tier.close()

    def _get(self, key: BlockKey, salt: bytes) -> Block | None:
        if self._closed:
            return None
        deletions = self._deletions
        promotable = not self._deleting  # asked in this order: a deletion that begins between the two is noticed later
        for place, tier in enumerate(self._tiers):
            found = self._verified(tier, key, salt)
            if found is not None:
                block, sealed = found
                if promotable:
                    self._promote(key, sealed, self._tiers[:place], deletions)
                return block
        return None

    def _verified(self, tier: Tier, key: BlockKey, salt: bytes) -> tuple[Block, memoryview] | None:
        try:
            sealed = tier.read(key)
            if sealed is None:
                self._count(tier, misses=1)
                return None
            block = self._sealer.open(key, sealed, salt=salt)
        except BlockCorrupt as error:
            self._corrupt(tier, key, error)
        except KvError as error:
            self._failed(tier, error)
        else:
            self._count(tier, hits=1, read_bytes=len(sealed))
            return block, sealed
        return None

    def _promote(self, key: BlockKey, sealed: memoryview, tiers: Sequence[Tier], deletions: int) -> None:
        for tier in tiers:
            try:
                tier.write(key, sealed)
                self._count(tier, written=1, written_bytes=len(sealed))
                if self._deletions != deletions:
                    # It may have been deleted since we read it, and must not come back. A deletion that begins after
                    # this line finds the copy by itself.
                    tier.drop(key)
            except TierFull:
                # All that is in there is pinned. A copy that was not made costs nothing.
                continue
            except KvError as error:
                self._failed(tier, error)

    def _touch(self, key: BlockKey) -> None:
        for tier in self._tiers:
            tier.touch(key)

    def _corrupt(self, tier: Tier, key: BlockKey, error: BlockCorrupt) -> None:
        self._count(tier, corrupt=1)
        _log.warning("%s: dropped block %s: %s", tier.name, key.hex()[:16], error)
        self._note_error(tier, error)
        try:
            tier.drop(key)
        except KvError as failure:
            self._failed(tier, failure)

    def _failed(self, tier: Tier, error: KvError) -> None:
        self._count(tier, errors=1)
        if self._note_error(tier, error):
            _log.warning("%s", error)

    def _note_error(self, tier: Tier, error: KvError) -> bool:
        """Keep it for the report; whether it is time to log again."""
        now_s = self._clock()
        with self._lock:
            counts = self._counts[tier.name]
            counts.last_error, counts.last_error_at_s = str(error), now_s
            due = now_s - counts.logged_at_s >= _LOG_EVERY_S
            if due:
                counts.logged_at_s = now_s
            return due

    def _count(self, tier: Tier, **increments: int) -> None:
        with self._lock:
            counts = self._counts[tier.name]
            for name, increment in increments.items():
                setattr(counts, name, getattr(counts, name) + increment)

    def _expire(self, tier: Tier, keys: set[BlockKey]) -> set[BlockKey]:
        gone = {key for key in keys if tier.drop(key)}
        self._count(tier, expired=len(gone))
        return gone

    def _at_home(self, key: BlockKey) -> bool:
        for home in self._homes:
            try:
                if home.length(key) is not None:
                    return True
            except KvError as error:
                self._failed(home, error)
                return True  # nobody can say: keep the copy
        return False

    def _caches(self) -> tuple[Tier, ...]:
        return tuple(tier for tier in self._tiers if tier not in self._homes)

    @contextmanager
    def _deletion(self) -> Iterator[None]:
        with self._lock:
            self._deletions += 1
            self._deleting += 1
        try:
            yield
        finally:
            with self._lock:
                self._deleting -= 1

    def _require_open(self) -> None:
        if self._closed:
            raise TierUnavailable("the store is closed")
