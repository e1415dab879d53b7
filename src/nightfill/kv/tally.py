"""What happened on each tier, counted for the report; failures are logged, but not over and over."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.kv.report import TierReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nightfill.errors import KvError
    from nightfill.kv.tier import Tier

_log = logging.getLogger(__name__)
_LOG_EVERY_S: Final = 60.0


@dataclass(slots=True)
class _Counts:
    """Of one tier. Guarded by the tally's lock."""

    hits: int = 0
    misses: int = 0
    corrupt: int = 0
    unknown_key: int = 0
    errors: int = 0
    expired: int = 0
    written: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    demoted: int = 0
    undemoted: int = 0
    resealed: int = 0
    last_error: str | None = None
    last_error_at_s: float | None = None
    logged_at_s: float = float("-inf")


class Tally:
    """Counters per tier. Safe to use from any thread."""

    def __init__(self, tiers: Iterable[Tier], *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = {tier.name: _Counts() for tier in tiers}

    def count(self, tier: Tier, **increments: int) -> None:
        """Add to counters of a tier, by their names in `TierReport`."""
        with self._lock:
            counts = self._counts[tier.name]
            for name, increment in increments.items():
                setattr(counts, name, getattr(counts, name) + increment)

    def failed(self, tier: Tier, error: KvError) -> None:
        """A call of the tier ended in `error`."""
        self.count(tier, errors=1)
        if self.note_error(tier, error):
            _log.warning("%s", error)

    def note_error(self, tier: Tier, error: KvError) -> bool:
        """Keep it for the report; whether it is time to log again."""
        now_s = self._clock()
        with self._lock:
            counts = self._counts[tier.name]
            counts.last_error, counts.last_error_at_s = str(error), now_s
            due = now_s - counts.logged_at_s >= _LOG_EVERY_S
            if due:
                counts.logged_at_s = now_s
            return due

    def report(self, tier: Tier, *, old_keys: int) -> TierReport:
        """A tier and its counters as they are now."""
        usage = tier.usage()
        with self._lock:
            counts = self._counts[tier.name]
            return TierReport(
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
                unknown_key=counts.unknown_key,
                errors=counts.errors,
                last_error=counts.last_error,
                last_error_at_s=counts.last_error_at_s,
                evicted=usage.evicted,
                expired=counts.expired,
                written=counts.written,
                written_bytes=counts.written_bytes,
                read_bytes=counts.read_bytes,
                demoted=counts.demoted,
                undemoted=counts.undemoted,
                resealed=counts.resealed,
                old_keys=old_keys,
            )
