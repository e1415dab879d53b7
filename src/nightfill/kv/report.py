"""What the store says of itself, for metrics and `doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReport:
    """One tier. Counters are cumulative since this process opened the store."""

    name: str
    kind: str
    durable: bool
    bytes: int
    blocks: int
    max_bytes: int
    free_bytes: int | None
    """Left on the file system behind it."""
    direct_io: bool | None
    """Whether O_DIRECT is in use; None where the question makes no sense."""
    hits: int
    misses: int
    corrupt: int
    """Copies that did not verify, and were dropped."""
    unknown_key: int = 0
    """Reads of blocks under a key that this process lacks; each is a miss, and the block stays."""
    errors: int
    """Calls that ended in TierUnavailable, or in TierFull while storing."""
    last_error: str | None
    last_error_at_s: float | None
    """Unix seconds."""
    evicted: int
    """Blocks dropped to make room."""
    expired: int
    """Blocks dropped by `sweep`."""
    written: int
    written_bytes: int
    read_bytes: int
    demoted: int = 0
    """Blocks that came from a tier above when that needed room; they count as written too."""
    undemoted: int = 0
    """Blocks evicted here that a tier below was to take, and did not."""
    resealed: int = 0
    """Blocks sealed anew under the current key; they count as written too."""
    old_keys: int = 0
    """Blocks here under an old key, as far as they were looked at; `Store.reseal` looks at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """All tiers, fastest first."""

    tiers: tuple[TierReport, ...]
    pinned: int
    """Keys that eviction in this process leaves alone."""
    encrypted: bool
