"""What has to go, decided from records alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable

    from nightfill.kv.key import BlockKey


@dataclass(frozen=True, slots=True)
class Record:
    """One stored block, as far as eviction cares."""

    key: BlockKey
    size_bytes: int
    used_s: float
    """Last use, Unix seconds."""


def shortfall(
    *,
    incoming_bytes: int,
    used_bytes: int,
    max_bytes: int,
    free_bytes: int | None = None,
    min_free_bytes: int = 0,
) -> int:
    """Bytes that must go before `incoming_bytes` fit: under the tier's cap, and above the file system's floor.

    `free_bytes` None means that nothing but the cap bounds the tier. 0 or less: it fits.
    """
    over_cap = used_bytes + incoming_bytes - max_bytes
    if free_bytes is None:
        return over_cap
    return max(over_cap, min_free_bytes + incoming_bytes - free_bytes)


def victims(
    oldest_first: Iterable[Record], *, need_bytes: int, pinned: Container[BlockKey]
) -> tuple[Record, ...] | None:
    """The longest unused blocks that together free `need_bytes`; None, and nothing should go, if all are too few."""
    chosen: list[Record] = []
    for record in oldest_first:
        if need_bytes <= 0:
            break
        if record.key not in pinned:
            chosen.append(record)
            need_bytes -= record.size_bytes
    return tuple(chosen) if need_bytes <= 0 else None


def expired(
    records: Iterable[Record], *, now_s: float, ttl_s: float, pinned: Container[BlockKey]
) -> tuple[Record, ...]:
    """Blocks unused for longer than `ttl_s`; a pinned one never expires."""
    return tuple(record for record in records if now_s - record.used_s > ttl_s and record.key not in pinned)


def unwanted(
    records: Iterable[Record], *, keep: Collection[BlockKey], now_s: float, grace_s: float
) -> tuple[Record, ...]:
    """Blocks that nobody refers to. The grace spares those whose writer has yet to say what they are for."""
    return tuple(record for record in records if record.key not in keep and now_s - record.used_s > grace_s)
