"""What has to go, decided from records alone. A tier of any kind makes room by the same rules.

1. What is pinned stays.
2. A tenant that is over its cap in the tier makes room among its own blocks, never among another's.
3. What is worth least goes first; of the same value, what was used longest ago.
4. Where blocks have their home, a block makes room only at the cost of blocks of less value, or of none: so two fills
   of one value that do not fit together do not push each other out in turn. The second is refused, and says so.

A tier asks `room_for`, with what it holds oldest first, and evicts what that names.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nightfill.kv.block import NO_OWNER

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Mapping

    from nightfill.kv.key import BlockKey


@dataclass(frozen=True, slots=True)
class Record:
    """One stored block, as far as eviction cares."""

    key: BlockKey
    size_bytes: int
    used_s: float
    """Last use, Unix seconds."""
    owner: bytes = NO_OWNER
    """Tag of the tenant (`block.owner_in`); only looked at where tenants have a cap."""

    def used_at(self, used_s: float) -> Record:
        """The record after a use at `used_s`, which may be older than the last one known."""
        return replace(self, used_s=max(used_s, self.used_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What eviction in this process heeds."""

    pinned: frozenset[BlockKey] = frozenset()
    values: Mapping[BlockKey, float] = field(default_factory=dict)
    """At least 0; a block that is not named is worth 0."""
    guarded: bool = False
    """Whether rule 4 holds: so where blocks have their home, not where copies lie."""

    def joined(self, pinned: frozenset[BlockKey], values: Mapping[BlockKey, float]) -> Retention:
        """With what another process wants kept: the larger value of each block counts."""
        dearest = dict(values)
        dearest.update((key, max(value, dearest.get(key, 0.0))) for key, value in self.values.items())
        return replace(self, pinned=self.pinned | pinned, values=dearest)


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


def room_for(
    incoming: Record,
    oldest_first: Iterable[Record],
    *,
    short_bytes: int,
    owner_short_bytes: int = 0,
    retention: Retention,
) -> tuple[Record, ...] | None:
    """What goes so that `incoming` fits; None, and nothing should go, if it cannot be made to fit.

    `short_bytes` is the tier's `shortfall`, `owner_short_bytes` that of the tenant, 0 where there is no cap. Both leave
    out what is stored under the key of `incoming` already, since that is replaced.
    """
    others = (record for record in oldest_first if record.key != incoming.key)
    if owner_short_bytes > 0:
        others = (record for record in others if record.owner == incoming.owner)
    return victims(
        others,
        need_bytes=max(short_bytes, owner_short_bytes),
        pinned=retention.pinned,
        values=retention.values,
        below=retention.values.get(incoming.key, 0.0) if retention.guarded else None,
    )


def victims(
    oldest_first: Iterable[Record],
    *,
    need_bytes: int,
    pinned: Container[BlockKey],
    values: Mapping[BlockKey, float] | None = None,
    below: float | None = None,
) -> tuple[Record, ...] | None:
    """The blocks of least value, the longest unused first, that together free `need_bytes`; None if all are too few.

    What is worth something, and `below` or more, stays. Looks at each record once, and only at the first few where they
    are worth nothing.
    """
    chosen: list[Record] = []
    valued: dict[float, list[Record]] = {}
    for record in oldest_first:
        if need_bytes <= 0:
            break
        if record.key in pinned:
            continue
        value = values.get(record.key, 0.0) if values else 0.0
        if value > 0:
            valued.setdefault(value, []).append(record)
        else:
            chosen.append(record)
            need_bytes -= record.size_bytes
    for value in sorted(valued):
        if below is not None and value >= below:
            break
        for record in valued[value]:
            if need_bytes <= 0:
                break
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
