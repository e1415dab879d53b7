"""Stored answers in memory, keeping the contracts of `nightfill.state.answers` and `nightfill.answers`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from fakes.engine import SIGNATURE
from nightfill.engines.engine import Description, Reuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.answers.embed import Vectors
    from nightfill.state.answers import AnswerKey, AnswerNote, AnswerScope

DESCRIPTION: Final = Description(
    engine="fake",
    model="demo",
    signature=SIGNATURE,
    context_length=4096,
    kv_bytes_per_token=1024,
    slots=2,
    reuse=Reuse.TRIM,
    embeddings=False,
    version="fake 1",
)


class Similar(NamedTuple):
    """A `Neighbour`."""

    key: AnswerKey
    similarity: float


class FakeIndex:
    """An `Index` that compares all. With `gate` set, a look-up waits for it first."""

    def __init__(self) -> None:
        self.serial = 0
        self.saves = 0
        self.closed = False
        self.gate: threading.Event | None = None
        self.looking = threading.Event()
        self._changed = threading.Condition()
        self._rows: dict[AnswerKey, tuple[AnswerScope, Vectors]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def holds(self, scope: AnswerScope) -> bool:
        with self._changed:
            return any(its == scope for its, _ in self._rows.values())

    def nearest(self, scope: AnswerScope, vector: Vectors, k: int = 8) -> list[Similar]:
        self.looking.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        with self._changed:
            rows = [Similar(key, float(row @ vector)) for key, (its, row) in self._rows.items() if its == scope]
        return sorted(rows, key=lambda row: -row.similarity)[:k]

    def add(self, notes: Sequence[AnswerNote], vectors: Vectors) -> None:
        with self._changed:
            for note, vector in zip(notes, vectors, strict=True):
                self._rows[note.key] = (note.scope, vector)
                self.serial = note.serial
            self._changed.notify_all()

    def remove(self, keys: Sequence[AnswerKey]) -> int:
        with self._changed:
            self._changed.notify_all()
            return sum(self._rows.pop(key, None) is not None for key in keys)

    def keys(self, begin: int, count: int) -> list[AnswerKey] | None:
        with self._changed:
            return list(self._rows)[begin : begin + count] if begin < len(self._rows) else None

    def close(self) -> None:
        self.closed = True

    def wait_for(self, count: int) -> None:
        """Wait until it has so many rows."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self) == count, 5), f"{len(self)} rows"

    def save(self) -> None:
        self.saves += 1
