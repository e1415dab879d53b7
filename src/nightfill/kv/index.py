"""What a tier holds, oldest use first."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nightfill.kv.eviction import Record
    from nightfill.kv.key import BlockKey


class Index:
    """Records by key in the order of their last use, and their total size. Not thread-safe: its tier locks."""

    def __init__(self) -> None:
        self._records: OrderedDict[BlockKey, Record] = OrderedDict()
        self._total_bytes = 0
        self._owned: Counter[bytes] = Counter()

    @property
    def total_bytes(self) -> int:
        """Sum of all sizes."""
        return self._total_bytes

    def owned_bytes(self, owner: bytes) -> int:
        """Sum of the sizes of one tenant's blocks."""
        return self._owned[owner]

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._records

    def __iter__(self) -> Iterator[Record]:
        """Oldest use first. The index must not change meanwhile."""
        return iter(self._records.values())

    def get(self, key: BlockKey) -> Record | None:
        """The record of `key`."""
        return self._records.get(key)

    def put(self, record: Record) -> None:
        """Add or replace a record, as the one used last."""
        self.remove(record.key)
        self._records[record.key] = record
        self._add(record, 1)

    def update(self, record: Record) -> None:
        """Add a record, or replace it where it stands; `sort` follows when all are in."""
        old = self._records.get(record.key)
        if old is not None:
            self._add(old, -1)
        self._records[record.key] = record
        self._add(record, 1)

    def touch(self, key: BlockKey, used_s: float) -> bool:
        """Note a use; whether the key is known."""
        record = self._records.get(key)
        if record is None:
            return False
        self._records[key] = record.used_at(used_s)
        self._records.move_to_end(key)
        return True

    def remove(self, key: BlockKey) -> bool:
        """Forget a key; whether it was known."""
        record = self._records.pop(key, None)
        if record is None:
            return False
        self._add(record, -1)
        return True

    def sort(self) -> None:
        """Bring records into the order of their last use; those of the same time stay as they stand."""
        self._records = OrderedDict(sorted(self._records.items(), key=lambda item: item[1].used_s))

    def _add(self, record: Record, sign: int) -> None:
        self._total_bytes += sign * record.size_bytes
        self._owned[record.owner] += sign * record.size_bytes
        if not self._owned[record.owner]:
            del self._owned[record.owner]
