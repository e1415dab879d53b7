"""Demotion: what a tier evicts is written to a slower tier that is written back to, before it is gone.

*Bounds.* An eviction waits for its demotion, so that the block is there before it is gone here, but `WAIT_S` at most.
When that was too short, or the slower tier failed, later evictions do not wait or try for `REST_S`: their blocks are
lost, which is counted. So a slower tier that hangs costs each writer one wait in a while, never more. No lock of a tier
is held meanwhile. At most `JOBS` demotions are under way, each with one block in memory. A demotion that makes the
slower tier evict demotes further down in the same thread: at most as deep as there are tiers.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Final

from nightfill.errors import KvError, TierFull
from nightfill.kv.eviction import expired
from nightfill.kv.tier import Evictor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.kv.deletion import Deletions
    from nightfill.kv.eviction import Record
    from nightfill.kv.key import BlockKey
    from nightfill.kv.roles import Roles
    from nightfill.kv.tally import Tally
    from nightfill.kv.tier import Tier

_log = logging.getLogger(__name__)

WAIT_S: Final = 1.0
REST_S: Final = 10.0
JOBS: Final = 4
_THREADS: Final = 2


class Demotion:
    """Takes what tiers spill. Its methods are safe to call from any thread."""

    def __init__(
        self,
        roles: Roles,
        tally: Tally,
        deletions: Deletions,
        *,
        clock: Callable[[], float],
        wait_s: float = WAIT_S,
        rest_s: float = REST_S,
    ) -> None:
        self._roles = roles
        self._tally = tally
        self._deletions = deletions
        self._clock = clock
        self._wait_s = wait_s
        self._rest_s = rest_s
        self._rested_at_s = float("-inf")
        self._jobs = threading.BoundedSemaphore(JOBS)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="kv-demote")
        self._here = threading.local()
        self._closed = False
        for tier in roles.tiers:
            if roles.backs_below(tier) and isinstance(tier, Evictor):
                tier.spill_to(functools.partial(self._spill, tier))

    def close(self) -> None:
        """Wait for demotions under way; what is evicted later is lost. Idempotent."""
        self._closed = True
        self._pool.shutdown(wait=True)

    def _spill(self, tier: Tier, records: Sequence[Record]) -> None:
        old = {r.key for r in expired(records, now_s=self._clock(), ttl_s=self._roles.ttl_s(tier), pinned=())}
        keys = [record.key for record in records if record.key not in old]
        if not keys:
            return
        if getattr(self._here, "demoting", False):
            self._demote(tier, keys)
            return
        began_s = time.monotonic()
        if self._closed or began_s < self._rested_at_s or not self._jobs.acquire(timeout=self._wait_s):
            self._tally.count(tier, undemoted=len(keys))
            return
        try:
            job = self._pool.submit(self._run, tier, keys)
        except RuntimeError:
            # Closed a moment ago.
            self._jobs.release()
            self._tally.count(tier, undemoted=len(keys))
            return
        try:
            job.result(timeout=max(0.0, self._wait_s - (time.monotonic() - began_s)))
        except FutureTimeout:
            # It goes on; what it has not read yet when we evict it is counted there.
            self._rest()

    def _run(self, tier: Tier, keys: Sequence[BlockKey]) -> None:
        self._here.demoting = True
        try:
            self._demote(tier, keys)
        finally:
            self._here.demoting = False
            self._jobs.release()

    def _demote(self, tier: Tier, keys: Sequence[BlockKey]) -> None:
        kept = self._kept_below(tier, keys)
        for key in keys:
            if key not in kept and not self._demote_one(tier, key):
                self._tally.count(tier, undemoted=1)

    def _kept_below(self, tier: Tier, keys: Sequence[BlockKey]) -> set[BlockKey]:
        """Those of `keys` that a slower keeper has already."""
        kept: set[BlockKey] = set()
        for lower in self._roles.below(tier):
            asked = [key for key in keys if key not in kept]
            if asked and lower in self._roles.keepers:
                try:
                    lengths = lower.lengths(asked)
                except KvError as error:
                    self._failed(lower, error)
                    continue
                kept |= {key for key, length in zip(asked, lengths, strict=True) if length is not None}
        return kept

    def _demote_one(self, tier: Tier, key: BlockKey) -> bool:
        """Whether it is now in a slower tier, or should be in none."""
        with self._deletions.copy(key) as copy:
            try:
                sealed = tier.read(key)
            except KvError as error:
                self._tally.failed(tier, error)
                return False
            if copy.cancelled:
                return True
            if sealed is None:
                return False
            for lower in self._roles.backs_below(tier):
                try:
                    lower.write(key, sealed)
                    self._tally.count(lower, demoted=1, written=1, written_bytes=len(sealed))
                    if copy.cancelled:
                        lower.drop(key)
                except KvError as error:
                    self._failed(lower, error)
                else:
                    return True
        return False

    def _failed(self, lower: Tier, error: KvError) -> None:
        self._tally.failed(lower, error)
        if not isinstance(error, TierFull):
            self._rest()

    def _rest(self) -> None:
        self._rested_at_s = time.monotonic() + self._rest_s
