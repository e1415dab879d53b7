"""The seam between the store and the places where sealed blocks lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nightfill.kv.eviction import Record, Retention
    from nightfill.kv.key import BlockKey

    Spill = Callable[[Sequence[Record]], None]
    """Told of blocks that are about to be evicted, while they can still be read. Returns soon; never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How full a tier is. Never raises: an unreachable tier reports what it knew last."""

    bytes: int
    blocks: int
    max_bytes: int
    evicted: int
    """Blocks dropped to make room since the start."""
    free_bytes: int | None = None
    """Left on the file system behind it, if there is one and it answers."""
    direct_io: bool | None = None
    """Whether O_DIRECT is in use; None where the question makes no sense."""


class Tier(Protocol):
    """One place for sealed blocks. Safe to call from several threads, and where `durable`, from several processes.

    It moves bytes and looks into none: sealing and verifying is the store's. Lengths are multiples of `ALIGNMENT`, and
    views handed to `write` come from `Buffers`. It holds at most `max_bytes`, by evicting what was used longest ago.
    """

    @property
    def name(self) -> str:
        """Unique within a store; a metric label."""

    @property
    def kind(self) -> str:
        """`ram`, `disk`, ..."""

    @property
    def durable(self) -> bool:
        """Whether blocks outlive this process."""

    def read(self, key: BlockKey) -> memoryview | None:
        """The sealed bytes, read-only; None when they are not there. Does not count as a use: see `touch`.

        Raises TierUnavailable when the device fails, BlockCorrupt when the stored length cannot be right. Never
        deletes: one stumble of the device must not cost us the data.
        """

    def write(self, key: BlockKey, sealed: memoryview) -> None:
        """Store a whole block, in place of one that is there; a reader sees a whole block, the old one or none.

        The tier may keep the view, so its bytes must not change afterwards. Evicts as needed. Raises TierFull when
        room cannot be made, TierUnavailable when the device fails; nothing is left behind then.
        """

    def length(self, key: BlockKey) -> int | None:
        """Stored length of a block; None when it is not there. Raises TierUnavailable."""

    def lengths(self, keys: Sequence[BlockKey]) -> list[int | None]:
        """`length` of each key, in the order given: of a remote tier, in one round trip. Raises TierUnavailable."""

    def touch(self, key: BlockKey) -> None:
        """Note that a block was used just now; nothing happens when it is not there. Never raises."""

    def drop(self, key: BlockKey) -> bool:
        """Delete a block, pinned or not; whether it was there. Raises TierUnavailable."""

    def pin(self, keys: frozenset[BlockKey]) -> None:
        """Replace the set of keys that eviction in this process leaves alone."""

    def records(self) -> tuple[Record, ...]:
        """All blocks, with last uses as fresh as the tier can tell, oldest first. Raises TierUnavailable."""

    def usage(self) -> Usage:
        """How full it is."""

    def close(self) -> None:
        """Let go of memory and handles. Idempotent."""


@runtime_checkable
class Evictor(Protocol):
    """What a tier may offer besides that chooses its victims in this process. The store asks with `isinstance`."""

    def retain(self, values: Mapping[BlockKey, float], *, guarded: bool) -> None:
        """Replace the values by which it chooses; a block that is not named is worth 0, and what is worth least goes.

        `guarded`: room is made only at the cost of blocks of less value than the one that comes, or of none.
        """

    def spill_to(self, spill: Spill) -> None:
        """Call `spill` before blocks are evicted, without holding a lock. Not for what is dropped or replaced."""


@runtime_checkable
class Publisher(Protocol):
    """What a tier may offer besides through which one process tells others what to keep."""

    def publish(self, retention: Retention) -> None:
        """Have every process that shares the tier heed these pins and values besides its own, in place of those before.

        Counts for a day, so publish again within that. Cheap when nothing changed. Never raises.
        """


@runtime_checkable
class HeadReader(Protocol):
    """What a tier may offer besides that need not move a whole block to look at its header."""

    def head(self, key: BlockKey) -> memoryview | None:
        """The first `HEADER_BYTES` bytes of a block, not verified; None when it is not there. As `Tier.read`."""
