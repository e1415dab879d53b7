"""Rotation of master keys: what an old key sealed is sealed anew, when it is used and in sweeps, until none is left.

A block under a key that we lack is a miss, but stays: the key file may be the wrong one today. It is remembered, so
that look-ups pass it over and the next `put` replaces it.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.errors import BlockCorrupt, KeyUnknown, KvError
from nightfill.kv.block import NO_OWNER, SealKind, owner_in, owner_of, seal_in
from nightfill.kv.key import BlockKey
from nightfill.kv.tier import HeadReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Executor

    from nightfill.kv.deletion import Deletions
    from nightfill.kv.seal import Sealer
    from nightfill.kv.tally import Tally
    from nightfill.kv.tier import Tier

_log = logging.getLogger(__name__)

IN_FLIGHT: Final = 2
"""Blocks that are sealed anew at the same time because they were used; more wait for their next use or a sweep."""
_KNOWN: Final = 1 << 16
_LOOKS: Final = 16
"""So many headers a sweep looks at for each block that it may seal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resealed:
    """What one step of a sweep did."""

    blocks: int
    """Sealed anew."""
    left: int
    """Blocks met in this pass over all tiers that stay under an old key: of tenants whose salt was not given, or of
    tiers that did not take them."""
    unknown: int
    """Blocks met in this pass under a key that this process lacks."""
    finished: bool
    """Whether this step ended a pass. If so and nothing is `left`, the old keys are of no more use here."""


class Rotation:
    """Knows and renews what is not under the current key. Safe to use from any thread."""

    def __init__(
        self, tiers: Sequence[Tier], sealer: Sealer, tally: Tally, deletions: Deletions, background: Executor
    ) -> None:
        self._tiers = tiers
        self._sealer = sealer
        self._tally = tally
        self._deletions = deletions
        self._background = background
        self._slots = threading.BoundedSemaphore(IN_FLIGHT)
        self._lock = threading.Lock()
        """Guards what is known of blocks."""
        self._old: dict[str, dict[BlockKey, None]] = {tier.name: {} for tier in tiers}
        self._unknown: dict[str, dict[BlockKey, None]] = {tier.name: {} for tier in tiers}
        self._stepping = threading.Lock()
        """Guards the place of the sweep."""
        self._at: tuple[int, BlockKey] = (0, BlockKey(b""))
        self._left = 0
        self._unknown_met = 0

    def readable(self, tier: Tier, key: BlockKey) -> bool:
        """False when the copy in `tier` was found to be under a key that we lack."""
        return key not in self._unknown[tier.name]

    def found_unknown(self, tier: Tier, key: BlockKey) -> None:
        """A read of this copy ended in `KeyUnknown`."""
        self._note(self._unknown[tier.name], key)

    def forget(self, tier: Tier, key: BlockKey) -> None:
        """The copy was written, replaced or dropped."""
        with self._lock:
            self._old[tier.name].pop(key, None)
            self._unknown[tier.name].pop(key, None)

    def old_keys(self, tier: Tier) -> int:
        """How many blocks of a tier are known to be under an old key."""
        return len(self._old[tier.name])

    def used(self, tiers: Sequence[Tier], key: BlockKey, sealed: memoryview, *, salt: bytes) -> None:
        """A block was read, and now lies as `sealed` in each of `tiers`. Seals it anew there in the background."""
        if self._sealer.current(sealed):
            for tier in tiers:
                if self._old[tier.name] or self._unknown[tier.name]:
                    self.forget(tier, key)
            return
        for tier in tiers:
            self._note(self._old[tier.name], key)
        if not self._slots.acquire(blocking=False):
            return
        try:
            self._background.submit(self._renew_used, tiers, key, salt)
        except RuntimeError:
            # The store is being closed.
            self._slots.release()

    def step(self, salts: Iterable[bytes], *, limit: int) -> Resealed:
        """Look at the next blocks, and seal at most `limit` anew. `salts` are those of the tenants."""
        if not self._sealer.encrypts:
            return Resealed(blocks=0, left=0, unknown=0, finished=True)
        by_owner = {owner_of(salt): salt for salt in salts}
        done, looks = 0, limit * _LOOKS
        with self._stepping:
            first, after = self._at
            if (first, after) == (0, b""):
                self._left = self._unknown_met = 0
            for place in range(first, len(self._tiers)):
                tier = self._tiers[place]
                for key in self._keys_after(tier, after):
                    if done >= limit or looks <= 0:
                        return self._paused(done)
                    looks -= 1
                    done += self._look(tier, key, by_owner)
                    self._at = (place, key)
                after = BlockKey(b"")
            self._at = (0, BlockKey(b""))
            return Resealed(blocks=done, left=self._left, unknown=self._unknown_met, finished=True)

    def _paused(self, done: int) -> Resealed:
        return Resealed(blocks=done, left=self._left, unknown=self._unknown_met, finished=False)

    def _keys_after(self, tier: Tier, after: BlockKey) -> list[BlockKey]:
        try:
            return sorted(record.key for record in tier.records() if record.key > after)
        except KvError as error:
            self._tally.failed(tier, error)
            self._left += 1  # nobody can say that nothing is left there
            return []

    def _look(self, tier: Tier, key: BlockKey, by_owner: dict[bytes, bytes]) -> int:
        """Renew a block if need be; how many were."""
        try:
            head = tier.head(key) if isinstance(tier, HeadReader) else tier.read(key)
            if head is None or self._sealer.current(head) or seal_in(head) != SealKind.AES_GCM:
                return 0
            owner = owner_in(head)
            # Blocks of the first format do not tell whose they are.
            salts = list(by_owner.values()) if owner == NO_OWNER else [by_owner[owner]] if owner in by_owner else []
            self._note(self._old[tier.name], key)
            for salt in salts:
                try:
                    return self._renew(tier, key, salt)
                except KeyUnknown:
                    raise
                except BlockCorrupt:
                    continue
        except KeyUnknown:
            self.forget(tier, key)
            self.found_unknown(tier, key)
            self._unknown_met += 1
            return 0
        except KvError as error:
            self._tally.failed(tier, error)
        self._left += 1
        return 0

    def _renew_used(self, tiers: Sequence[Tier], key: BlockKey, salt: bytes) -> None:
        try:
            for tier in tiers:
                try:
                    self._renew(tier, key, salt)
                except KvError as error:
                    self._tally.failed(tier, error)
        finally:
            self._slots.release()

    def _renew(self, tier: Tier, key: BlockKey, salt: bytes) -> int:
        """Seal a block anew in its tier; how many were. Read anew, so that nothing else keeps its memory meanwhile."""
        with self._deletions.copy(key) as copy:
            sealed = tier.read(key)
            if sealed is None or self._sealer.current(sealed):
                self.forget(tier, key)
                return 0
            block = self._sealer.open(key, sealed, salt=salt)
            fresh = self._sealer.seal(key, block.meta, [block.payload], salt=salt)
            if copy.cancelled:
                return 0
            tier.write(key, fresh)
            if copy.cancelled:
                tier.drop(key)
        self.forget(tier, key)
        self._tally.count(tier, resealed=1, written=1, written_bytes=len(fresh))
        return 1

    def _note(self, known: dict[BlockKey, None], key: BlockKey) -> None:
        with self._lock:
            known[key] = None
            if len(known) > _KNOWN:
                del known[next(iter(known))]
