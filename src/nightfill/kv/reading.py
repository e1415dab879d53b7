"""Reading: from the fastest tier that has a good copy, with copies made for the faster ones."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from nightfill.errors import BlockCorrupt, KeyUnknown, KvError, TierFull

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from nightfill.kv.block import Block, BlockMeta
    from nightfill.kv.deletion import Copy, Deletions
    from nightfill.kv.key import BlockKey
    from nightfill.kv.rotation import Rotation
    from nightfill.kv.seal import Sealer
    from nightfill.kv.tally import Tally
    from nightfill.kv.tier import Tier

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Reading:
    """The reads of a store, whose methods these are. Safe to use from any thread."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        sealer: Sealer,
        tally: Tally,
        deletions: Deletions,
        rotation: Rotation,
        readers: Executor,
    ) -> None:
        self._tiers = tiers
        self._sealer = sealer
        self._tally = tally
        self._deletions = deletions
        self._rotation = rotation
        self._readers = readers
        self._closed = False

    def close(self) -> None:
        """Everything is a miss from now on."""
        self._closed = True

    def get(self, key: BlockKey, *, salt: bytes) -> Block | None:
        """See `Store.get`."""
        return self._one(key, partial(self._sealer.open, key, salt=salt), salt)

    def get_into(self, key: BlockKey, out: memoryview, *, salt: bytes) -> BlockMeta | None:
        """See `Store.get_into`."""
        return self._one(key, partial(self._open_into, key, out, salt), salt)

    def get_many(self, keys: Sequence[BlockKey], *, salt: bytes) -> list[Block | None]:
        """See `Store.get_many`."""
        return self._side_by_side([(key, partial(self._sealer.open, key, salt=salt)) for key in keys], salt)

    def get_many_into(
        self, keys: Sequence[BlockKey], outs: Sequence[memoryview], *, salt: bytes
    ) -> list[BlockMeta | None]:
        """See `Store.get_many_into`."""
        pairs = zip(keys, outs, strict=True)
        return self._side_by_side([(key, partial(self._open_into, key, out, salt)) for key, out in pairs], salt)

    def _open_into(self, key: BlockKey, out: memoryview, salt: bytes, sealed: memoryview) -> BlockMeta | None:
        return self._sealer.open_into(key, sealed, out, salt=salt)

    def _one(self, key: BlockKey, opened: Callable[[memoryview], T | None], salt: bytes) -> T | None:
        found = self._read(key, opened, salt)
        if found is not None:
            self._touch(key)
        return found

    def _side_by_side(
        self, reads: Sequence[tuple[BlockKey, Callable[[memoryview], T | None]]], salt: bytes
    ) -> list[T | None]:
        if len(reads) < 2 or self._closed:
            found = [self._read(key, opened, salt) for key, opened in reads]
        else:
            try:
                found = list(self._readers.map(lambda pair: self._read(pair[0], pair[1], salt), reads))
            except RuntimeError:
                if not self._closed:
                    raise
                return [None] * len(reads)
        # Backwards, so that of one prefix its end is evicted first: the front is of use without it, not vice versa.
        for (key, _), one in zip(reversed(reads), reversed(found), strict=True):
            if one is not None:
                self._touch(key)
        return found

    def _read(self, key: BlockKey, opened: Callable[[memoryview], T | None], salt: bytes) -> T | None:
        if self._closed:
            return None
        with self._deletions.copy(key) as copy:
            for place, tier in enumerate(self._tiers):
                found = self._verified(tier, key, opened)
                if found is not None:
                    result, sealed = found
                    promoted = [above for above in self._tiers[:place] if self._promote(key, sealed, above, copy)]
                    self._rotation.used([tier, *promoted], key, sealed, salt=salt)
                    return result
        return None

    def _verified(
        self, tier: Tier, key: BlockKey, opened: Callable[[memoryview], T | None]
    ) -> tuple[T, memoryview] | None:
        try:
            sealed = tier.read(key)
            result = None if sealed is None else opened(sealed)
        except KeyUnknown as error:
            self._tally.count(tier, unknown_key=1)
            self._rotation.found_unknown(tier, key)
            if self._tally.note_error(tier, error):
                _log.warning("%s: block %s is not used: %s", tier.name, key.hex()[:16], error)
        except BlockCorrupt as error:
            self._corrupt(tier, key, error)
        except KvError as error:
            self._tally.failed(tier, error)
        else:
            if sealed is not None and result is not None:
                self._tally.count(tier, hits=1, read_bytes=len(sealed))
                return result, sealed
            self._tally.count(tier, misses=1)
        return None

    def _promote(self, key: BlockKey, sealed: memoryview, tier: Tier, copy: Copy) -> bool:
        """Whether `tier` has it now."""
        if copy.cancelled:
            return False
        try:
            tier.write(key, sealed)
            self._tally.count(tier, written=1, written_bytes=len(sealed))
            self._rotation.forget(tier, key)
            if copy.cancelled:
                # It was deleted since we read it, and must not come back. A deletion that begins after this line finds
                # the copy by itself.
                tier.drop(key)
                return False
        except TierFull:
            # All that is in there is pinned, or worth more. A copy that was not made costs nothing.
            return False
        except KvError as error:
            self._tally.failed(tier, error)
            return False
        return True

    def _touch(self, key: BlockKey) -> None:
        for tier in self._tiers:
            tier.touch(key)

    def _corrupt(self, tier: Tier, key: BlockKey, error: BlockCorrupt) -> None:
        self._tally.count(tier, corrupt=1)
        _log.warning("%s: dropped block %s: %s", tier.name, key.hex()[:16], error)
        self._tally.note_error(tier, error)
        try:
            tier.drop(key)
            self._rotation.forget(tier, key)
        except KvError as failure:
            self._tally.failed(tier, failure)
