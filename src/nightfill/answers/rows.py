"""The vectors of stored questions, one row each, in memory; and the file that they are brought back from.

    8 bytes   magic
    4 bytes   length of the head, little-endian
    head      JSON: see `Head`
    rows      scopes, keys, serials, scales, vectors, one array after the other
    32 bytes  SHA-256 of all before

It is written as a draft beside its place and renamed, so a reader sees a whole one or none; the digest finds what was
damaged since. A vector lies as 384 bytes and a scale: its cosines are off by some 0.0005.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from nightfill.answers.files import Reader, write_whole
from nightfill.errors import NightfillError, StateUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from nightfill.answers.embed import Vectors
    from nightfill.state.answers import AnswerNote
    from nightfill.state.seal import RenewableSeal

    Slots = NDArray[np.int32]
    """Numbers of rows."""

_MAGIC: Final = b"NFnear1\n"
_MOST_HEAD: Final = 1 << 20
_DIGEST: Final = 32
_AT_ONCE: Final = 256


class CellsFile(msgspec.Struct, frozen=True, kw_only=True):
    """Cells that belong to the rows; see `answers.cells`."""

    scope: str
    """Hex."""
    name: str
    serial: int
    """They have the rows up to this one."""
    sha256: str


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows are of."""

    identity: str
    """Of the embedding."""
    dimensions: int
    rows: int
    serial: int
    """The last one that was added."""
    cells: tuple[CellsFile, ...]


class Rows:
    """At most `capacity` rows. Written by one thread; others may read all the while, and check what they have read.

    A row that is free has a scope of zeros. Whoever writes one makes it free first and gives it its scope last, so that
    a reader who finds scope and serial unchanged afterwards has read one row and not two halves.
    """

    def __init__(self, capacity: int, dimensions: int) -> None:
        # Memory that nothing was written to costs nothing.
        self.scopes: NDArray[np.uint64] = np.zeros((capacity, 4), np.uint64)
        self.keys: NDArray[np.uint64] = np.zeros((capacity, 4), np.uint64)
        self.serials: NDArray[np.uint64] = np.zeros(capacity, np.uint64)
        self._scales: NDArray[np.float32] = np.zeros(capacity, np.float32)
        self._vectors: NDArray[np.int8] = np.zeros((capacity, dimensions), np.int8)
        self.used = 0
        """Rows from here on were never written."""
        self.free: list[int] = []
        """Those before that are free again."""

    @property
    def capacity(self) -> int:
        """The most rows."""
        return len(self.serials)

    def __len__(self) -> int:
        return self.used - len(self.free)

    def taken(self) -> NDArray[np.bool_]:
        """Which of the `used` ones are not free."""
        return np.asarray(self.scopes[: self.used].any(axis=1))

    def put(self, notes: Sequence[AnswerNote], vectors: Vectors) -> Slots:
        """Write rows, as many as there is room for at least; where each is."""
        reused = [self.free.pop() for _ in range(min(len(self.free), len(notes)))]
        fresh = range(self.used, self.used + len(notes) - len(reused))
        slots = np.array([*reused, *fresh], np.int32)
        scales = np.abs(vectors).max(axis=1, initial=1e-12) / 127
        self._vectors[slots] = np.rint(vectors / scales[:, None])
        self._scales[slots] = scales
        self.keys[slots] = as_words([note.key for note in notes])
        self.serials[slots] = [note.serial for note in notes]
        self.scopes[slots] = as_words([note.scope for note in notes])
        self.used += len(fresh)
        return slots

    def forget(self, slots: Slots) -> None:
        """Make rows free; nothing is left of what was in them."""
        self.scopes[slots] = 0
        self.keys[slots] = 0
        self.serials[slots] = 0
        self._vectors[slots] = 0
        self.free.extend(slots.tolist())

    def vectors(self, slots: Slots) -> Vectors:
        """The vectors as they were, nearly."""
        vectors: Vectors = self._vectors[slots].astype(np.float32)
        vectors *= self._scales[slots, None]
        return vectors

    def cosines(self, slots: Slots, vector: Vectors) -> Vectors:
        """Of the rows' vectors to another of length 1."""
        cosines = self._scales[slots]
        # Some at a time stay in the processor's cache, and are too few for a library to call other threads for.
        for begin in range(0, len(slots), _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            cosines[some] *= self._vectors.take(slots[some], axis=0).astype(np.float32) @ vector
        return cosines

    def save(self, path: Path, head: Callable[[int], Head], seal: RenewableSeal | None = None) -> None:
        """Write all to `path`. `head` makes the head from the number of rows. Raises StateUnavailable."""
        encoded = msgspec.json.encode(head(self.used))
        parts: list[bytes | memoryview] = [_MAGIC, len(encoded).to_bytes(4, "little"), encoded]
        parts += self._arrays(self.used)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        try:
            write_whole(path, [*parts, digest.digest()], seal)
        except OSError as exc:
            raise StateUnavailable(f"index of answers {path}: {exc}") from exc

    @classmethod
    def load(
        cls, path: Path, *, capacity: int, identity: str, dimensions: int, seal: RenewableSeal | None = None
    ) -> tuple[Rows, Head]:
        """What was saved. Raises StateUnavailable when it is damaged, sealed with another key than the current one, or
        of another embedding or a larger capacity.
        """
        try:
            with path.open("rb") as file:
                return cls._read(Reader(file, seal), capacity=capacity, identity=identity, dimensions=dimensions)
        except (OSError, ValueError, NightfillError, msgspec.MsgspecError) as exc:
            raise StateUnavailable(f"index of answers {path}: {exc}") from exc

    @classmethod
    def _read(cls, reader: Reader, *, capacity: int, identity: str, dimensions: int) -> tuple[Rows, Head]:
        digest = hashlib.sha256()
        head = _read_head(reader, digest)
        if (head.identity, head.dimensions) != (identity, dimensions) or head.rows > capacity:
            raise ValueError("of another embedding or another size")
        rows = cls(capacity, dimensions)
        for part in rows._arrays(head.rows):
            if reader.read_into(part) != len(part):
                raise ValueError("it ends early")
            digest.update(part)
        if reader.read(_DIGEST + 1) != digest.digest():
            raise ValueError("damaged")
        rows.used = head.rows
        rows.free = np.flatnonzero(~rows.taken()).tolist()
        return rows, head

    def _arrays(self, rows: int) -> list[memoryview]:
        arrays = (self.scopes, self.keys, self.serials, self._scales, self._vectors)
        return [array[:rows].reshape(-1).view(np.uint8).data for array in arrays]


def as_words(digests: Sequence[bytes]) -> NDArray[np.uint64]:
    """32 bytes each, as four numbers each."""
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 4)


def _read_head(reader: Reader, digest: Any) -> Head:
    begin = reader.read(len(_MAGIC) + 4)
    size = int.from_bytes(begin[len(_MAGIC) :], "little")
    if not begin.startswith(_MAGIC) or size > _MOST_HEAD:
        raise ValueError("not an index of ours")
    encoded = reader.read(size)
    digest.update(begin)
    digest.update(encoded)
    return msgspec.json.decode(encoded, type=Head)
