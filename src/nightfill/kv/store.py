"""The store: blocks over all tiers. Written through to their homes, promoted to what is fast, verified on read.

How tiers share the work is in `roles`, what they evict in `eviction`, what becomes of that in `demotion`, and the
change of keys in `rotation`.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from nightfill.errors import KvError, TierFull, TierUnavailable
from nightfill.kv.block import sealed_bytes
from nightfill.kv.deletion import Deletions
from nightfill.kv.demotion import Demotion
from nightfill.kv.eviction import expired, unwanted
from nightfill.kv.reading import Reading
from nightfill.kv.report import StoreReport
from nightfill.kv.roles import Roles
from nightfill.kv.rotation import Rotation
from nightfill.kv.tally import Tally
from nightfill.kv.wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

    from nightfill.kv.block import Block, BlockMeta
    from nightfill.kv.key import BlockKey, Span
    from nightfill.kv.roles import Policy
    from nightfill.kv.rotation import Resealed
    from nightfill.kv.seal import Sealer
    from nightfill.kv.tier import Tier

READ_THREADS: Final = 4
GRACE_S: Final = 600.0


class Store:
    """Blocks by key over `tiers`, fastest first. Safe to use from any thread; blocks its caller, so no event loop's.

    Blocks are written to every *home*: the durable tiers that are written through, or where there is none, all. Tiers
    that are written *back* to (`policies`, by name) take what those above evict. The others hold copies of what was
    read lately. `ttl_s` counts from the last use; `clock` gives Unix seconds.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        sealer: Sealer,
        *,
        ttl_s: float,
        clock: Callable[[], float] = time.time,
        policies: Mapping[str, Policy] | None = None,
    ) -> None:
        assert len({tier.name for tier in tiers}) == len(tiers)
        self._tiers = tuple(tiers)
        self._roles = Roles(tiers, ttl_s=ttl_s, policies=policies or {})
        self._sealer = sealer
        self._clock = clock
        self._wanted = Wanted(self._roles)
        self._tally = Tally(tiers, clock=clock)
        self._deletions = Deletions()
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="kv-read")
        self._demotion = Demotion(self._roles, self._tally, self._deletions, clock=clock)
        self._rotation = Rotation(self._tiers, sealer, self._tally, self._deletions, self._readers)
        self._reading = Reading(self._tiers, sealer, self._tally, self._deletions, self._rotation, self._readers)
        self._swept_s: dict[str, float] = {}
        """When tiers were listed by a sweep, by name; under an empty one, when copies were compared with them."""
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
        for tier in (*self._roles.homes, *(self._roles.caches if hot else ())):
            home = tier in self._roles.homes
            if not home and not held:
                break
            try:
                if tier.length(key) == length and self._rotation.readable(tier, key):
                    tier.touch(key)
                else:
                    sealed = sealed or self._sealer.seal(key, meta, parts, salt=salt)
                    self._write(tier, key, sealed)
                held = held or home
            except KvError as error:
                failure = error
                if home or not isinstance(error, TierFull):
                    self._tally.failed(tier, error)
        if not held:
            raise failure or TierUnavailable("the store has no tier")

    def get(self, key: BlockKey, *, salt: bytes) -> Block | None:
        """The block, verified, from the fastest tier that has it; faster ones get a copy. Never raises KvError.

        A copy that does not verify is counted and dropped, and the next tier is asked.
        """
        return self._reading.get(key, salt=salt)

    def get_into(self, key: BlockKey, out: memoryview, *, salt: bytes) -> BlockMeta | None:
        """`get`, with the payload put into `out`, a flat writable view of bytes; None is a miss.

        A payload of another length than `out` is a miss. After a miss, `out` may be garbage.
        """
        return self._reading.get_into(key, out, salt=salt)

    def get_many(self, keys: Sequence[BlockKey], *, salt: bytes) -> list[Block | None]:
        """`get` for each key, in the order given; reads run side by side."""
        return self._reading.get_many(keys, salt=salt)

    def get_many_into(
        self, keys: Sequence[BlockKey], outs: Sequence[memoryview], *, salt: bytes
    ) -> list[BlockMeta | None]:
        """`get_into` for each key and the view at its place, which must not overlap; reads run side by side."""
        return self._reading.get_many_into(keys, outs, salt=salt)

    def has(self, key: BlockKey) -> bool:
        """Whether some tier seems to have it, by name alone: no bytes are read. Never raises KvError."""
        return self.lengths([key])[0] is not None

    def has_many(self, keys: Sequence[BlockKey]) -> list[bool]:
        """`has` of each key, in the order given, as `lengths`."""
        return [length is not None for length in self.lengths(keys)]

    def lengths(self, keys: Sequence[BlockKey]) -> list[int | None]:
        """Stored lengths, header included, in the order given; None for what no tier seems to have.

        Each tier is asked once, and only for what the faster ones lack. Never raises KvError: a tier that fails has
        nothing.
        """
        found: dict[BlockKey, int] = {}
        for tier in self._tiers:
            lacking = [key for key in dict.fromkeys(keys) if key not in found]
            if not lacking:
                break
            try:
                lengths = tier.lengths(lacking)
            except KvError as error:
                self._tally.failed(tier, error)
                continue
            there = zip(lacking, lengths, strict=True)
            found.update({key: n for key, n in there if n is not None and self._rotation.readable(tier, key)})
        return [found.get(key) for key in keys]

    def in_memory(self, key: BlockKey) -> bool:
        """Whether a tier that is memory of this host has it; quick enough for an event loop. Never raises KvError."""
        for tier in self._tiers:
            if tier.kind == "ram":
                try:
                    if tier.length(key) is not None:
                        return True
                except KvError as error:
                    self._tally.failed(tier, error)
        return False

    def leading(self, spans: Sequence[Span]) -> int:
        """How many of `spans`, from the first on, are there without a gap; as `lengths`."""
        there = self.has_many([span.key for span in spans])
        return there.index(False) if False in there else len(spans)

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Replace the set of keys that neither eviction nor expiry takes; in this process, or see `publish`."""
        self._wanted.pin(keys)

    def retain(self, values: Mapping[BlockKey, float]) -> None:
        """Replace what blocks are worth to this process (or see `publish`): in whatever unit, at least 0 and finite.

        What is worth least is evicted first, then what was used longest ago; a block that is not named is worth 0. In
        homes, and where is written back to, a block takes the place of others only if they are worth less than it is,
        or nothing: so of two fills of one value, in a store too small for both, the second is refused (TierFull)
        instead of each pushing out the other in turn.
        """
        self._wanted.retain(values)

    def publish(self) -> None:
        """Tell other processes on the same disk tiers what `pin`, `retain` and `hold` say now, for the one that rules.

        Their eviction then heeds it besides their own, the larger value of a block; what is held is worth its value to
        them, not pinned. Counts for a day: publish again within that. Never raises KvError.
        """
        self._wanted.publish()

    def hold(self, keys: Iterable[BlockKey], *, value: float = 0.0) -> AbstractContextManager[None]:
        """Keep eviction in this process off `keys` while inside, as if pinned; they are worth at least `value`.

        For whoever stores a prefix: its end is of no use without its beginning, and must not push that out.
        """
        return self._wanted.hold(keys, value=value)

    def drop(self, keys: Iterable[BlockKey]) -> int:
        """Delete blocks, pinned or not, from all tiers; how many were there.

        Copies in the RAM of other processes go with their next `sweep`. Raises TierUnavailable, after all else is
        deleted, when a tier could not be asked: deletion must be complete, so ask again.
        """
        failure: KvError | None = None
        dropped = set()
        doomed = tuple(keys)
        with self._deletions.of(doomed):
            for key in doomed:
                for tier in self._tiers:
                    try:
                        if tier.drop(key):
                            dropped.add(key)
                        self._rotation.forget(tier, key)
                    except KvError as error:
                        self._tally.failed(tier, error)
                        failure = error
        if failure:
            raise failure
        return len(dropped)

    def forget(self, keys: Iterable[BlockKey]) -> None:
        """Drop copies from caches alone: the next read goes to where the blocks are kept. Never raises KvError."""
        doomed = tuple(keys)
        with self._deletions.of(doomed):
            for tier in self._roles.caches:
                for key in doomed:
                    try:
                        tier.drop(key)
                    except KvError as error:
                        self._tally.failed(tier, error)
                        break

    def sweep(self, keep: Collection[BlockKey] | None = None, *, grace_s: float = GRACE_S) -> int:
        """Delete what is expired, and if `keep` is given, what is not in it and unused for `grace_s`; how many.

        `keep` covers everything that anybody refers to; pass a set. Copies of what no home has any more go too. A tier
        that fails is left for the next time, and one on a server is not listed each time (`Policy`).
        """
        now_s = self._clock()
        gone: set[BlockKey] = set()
        for tier in self._roles.keepers:
            if not self._due(tier.name, every_s=self._roles.list_every_s(tier), now_s=now_s):
                continue
            try:
                records = tier.records()
                doomed = expired(records, now_s=now_s, ttl_s=self._roles.ttl_s(tier), pinned=self._wanted.pinned)
                if keep is not None:
                    doomed += unwanted(records, keep=keep, now_s=now_s, grace_s=grace_s)
                gone |= self._expire(tier, {record.key for record in doomed})
            except KvError as error:
                self._swept_s.pop(tier.name, None)
                self._tally.failed(tier, error)
        comparing = self._due("", every_s=self._roles.ask_every_s, now_s=now_s)
        for tier in self._roles.caches:
            try:
                records = tier.records()
                copies = self._without_home([record.key for record in records]) if comparing else set()
                if self._roles.expires_copies(tier):
                    old = expired(records, now_s=now_s, ttl_s=self._roles.ttl_s(tier), pinned=self._wanted.pinned)
                    copies |= {record.key for record in old}
                self._expire(tier, copies)
            except KvError as error:
                self._tally.failed(tier, error)
        return len(gone)

    def reseal(self, salts: Iterable[bytes], *, limit: int = 64) -> Resealed:
        """One bounded step of sealing anew what is under old keys, in all tiers: at most `limit` blocks.

        `salts` are those of all tenants, for without its salt no block can be opened. Call again until it is
        `finished`; if then nothing is `left`, the old key files can go. Counts as a use of what it seals. Never raises
        KvError.
        """
        return self._rotation.step(salts, limit=limit)

    def report(self) -> StoreReport:
        """Tiers and counters as they are now."""
        tiers = tuple(self._tally.report(tier, old_keys=self._rotation.old_keys(tier)) for tier in self._tiers)
        return StoreReport(tiers=tiers, pinned=len(self._wanted.pinned), encrypted=self._sealer.encrypts)

    def close(self) -> None:
        """Wait for reads under way and let go of memory. Later `put`s raise, later `get`s miss. Idempotent."""
        self._closed = True
        self._reading.close()
        self._readers.shutdown(wait=True)
        self._demotion.close()
        for tier in self._tiers:
            tier.close()

    def _write(self, tier: Tier, key: BlockKey, sealed: memoryview) -> None:
        tier.write(key, sealed)
        self._tally.count(tier, written=1, written_bytes=len(sealed))
        self._rotation.forget(tier, key)

    def _expire(self, tier: Tier, keys: set[BlockKey]) -> set[BlockKey]:
        with self._deletions.of(keys):
            gone = {key for key in keys if tier.drop(key)}
        for key in gone:
            self._rotation.forget(tier, key)
        self._tally.count(tier, expired=len(gone))
        return gone

    def _due(self, name: str, *, every_s: float, now_s: float) -> bool:
        if 0 <= now_s - self._swept_s.get(name, float("-inf")) < every_s:
            return False
        self._swept_s[name] = now_s
        return True

    def _without_home(self, keys: Sequence[BlockKey]) -> set[BlockKey]:
        """Those of `keys` that no keeper has; none, if one of them cannot be asked."""
        lost = list(keys)
        for tier in self._roles.keepers:
            try:
                lengths = tier.lengths(lost) if lost else []
            except KvError as error:
                self._tally.failed(tier, error)
                return set()
            lost = [key for key, length in zip(lost, lengths, strict=True) if length is None]
        return set(lost)

    def _require_open(self) -> None:
        if self._closed:
            raise TierUnavailable("the store is closed")
