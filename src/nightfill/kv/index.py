"""What a tier holds, oldest use first."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from nightfill.kv.eviction import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nightfill.kv.key import BlockKey


class Index:
    """Records by key in the order of their last use, and their total size. Not thread-safe: its tier locks."""

    def __init__(self) -> None:
        self._records: OrderedDict[BlockKey, Record] = OrderedDict()
        self._total_bytes = 0

    @property
    def total_bytes(self) -> int:
        """Sum of all sizes."""
        return self._total_bytes

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
        self._total_bytes += record.size_bytes

    def update(self, record: Record) -> None:
        """Add a record, or replace it where it stands; `sort` follows when all are in."""
        old = self._records.get(record.key)
        self._records[record.key] = record
        self._total_bytes += record.size_bytes - (old.size_bytes if old else 0)

    def touch(self, key: BlockKey, used_s: float) -> bool:
        """Note a use; whether the key is known."""
        record = self._records.get(key)
        if record is None:
            return False
        self._records[key] = Record(key, record.size_bytes, max(used_s, record.used_s))
        self._records.move_to_end(key)
        return True

    def remove(self, key: BlockKey) -> bool:
        """Forget a key; whether it was known."""
        record = self._records.pop(key, None)
        if record is None:
            return False
        self._total_bytes -= record.size_bytes
        return True

    def sort(self) -> None:
        """Bring records into the order of their last use; those of the same time stay as they stand."""
        self._records = OrderedDict(sorted(self._records.items(), key=lambda item: item[1].used_s))
