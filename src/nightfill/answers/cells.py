"""Cells of alike vectors in a large scope: a look-up goes by the cells' centres, then by the rows of the nearest ones.

That is an inverted file (Sivic and Zisserman, 2003) with whole vectors: centres by k-means over a sample, and for each
the rows that are nearest to it. New rows join the cells that there are; when there are half as many again as
the centres were made of, or a third has gone, the centres are made anew. Cells never change: changed ones are another
object and another file, so no search meets a writer.

    8 bytes   magic
    12 bytes  cells, rows, and rows when the centres were made; little-endian
    arrays    centres (float32), where each cell begins (int32), rows by cell (int32)
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from nightfill.answers.files import Reader, write_whole
from nightfill.errors import KvError, StateUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from nightfill.answers.embed import Vectors
    from nightfill.answers.rows import Slots
    from nightfill.state.seal import RenewableSeal

_MAGIC: Final = b"NFcells1"
_COUNTS: Final = struct.Struct("<III")
_ROWS_PER_CELL: Final = 256
_LEAST_CELLS: Final = 16
_PROBED: Final = 7
"""Cells whose rows are compared. In a million rows the nearest is then found 98 times of 100."""
_SAMPLE: Final = 16
"""Rows per cell that the centres are made of."""
_ROUNDS: Final = 3
_AT_ONCE: Final = 4096
_FEW: Final = 256
"""Centres that are compared at once: too few for a library to call other threads for."""


class Cells:
    """The cells of one scope. May be searched from several threads."""

    def __init__(self, centres: Vectors, bounds: Slots, slots: Slots, *, trained: int) -> None:
        """Cell n has `slots[bounds[n]:bounds[n + 1]]`; the centres were made when there were `trained` rows."""
        self.centres = centres
        self.bounds = bounds
        self.slots = slots
        self.trained = trained

    def __len__(self) -> int:
        return len(self.slots)

    def near(self, vector: Vectors) -> Slots:
        """The rows of the nearest cells; some 3,000 of them in a large scope."""
        cosines = np.concatenate(
            [self.centres[begin : begin + _FEW] @ vector for begin in range(0, len(self.centres), _FEW)]
        )
        others = max(0, len(cosines) - _PROBED)
        probed = np.argpartition(cosines, others)[others:]
        found: Slots = np.concatenate([self.slots[self.bounds[n] : self.bounds[n + 1]] for n in probed.tolist()])
        return found

    def changed(self, dropped: Slots, added: Slots, vectors: Callable[[Slots], Vectors]) -> Cells:
        """These cells, but with other rows. `vectors` gives those of some of the `added`."""
        cells = np.repeat(np.arange(len(self.centres), dtype=np.int32), np.diff(self.bounds))
        kept = ~np.isin(self.slots, dropped)
        return _sorted(
            self.centres,
            np.concatenate((cells[kept], _cells_of(added, vectors, self.centres))),
            np.concatenate((self.slots[kept], added)),
            trained=self.trained,
        )

    def save(self, path: Path, seal: RenewableSeal | None) -> str:
        """Write them; the SHA-256 of what is in the file, sealed or not. Raises StateUnavailable."""
        parts: list[bytes | memoryview] = [_MAGIC, _COUNTS.pack(len(self.centres), len(self.slots), self.trained)]
        parts += [array.reshape(-1).view(np.uint8).data for array in (self.centres, self.bounds, self.slots)]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        try:
            write_whole(path, parts, seal)
        except OSError as exc:
            raise StateUnavailable(f"index of answers {path}: {exc}") from exc
        return digest.hexdigest()


def make_cells(slots: Slots, vectors: Callable[[Slots], Vectors]) -> Cells:
    """Cells for at least 16 rows, the same for the same rows. A million take some 25 seconds of one core."""
    count = max(_LEAST_CELLS, len(slots) // _ROWS_PER_CELL)
    chosen = np.random.default_rng(0).permutation(len(slots))[: count * _SAMPLE]
    sample = vectors(slots[chosen])
    centres = sample[:count].copy()
    for _ in range(_ROUNDS):
        cells = _nearest(sample, centres)
        sums = np.zeros_like(centres)
        np.add.at(sums, cells, sample)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        # A centre that nothing is nearest to stays where it is.
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-9), centres).astype(np.float32)
    # Of centres that are alike, the first has all rows; one of the others could be probed in its place.
    used, places = np.unique(_cells_of(slots, vectors, centres), return_inverse=True)
    return _sorted(centres.take(used, axis=0), places.astype(np.int32), slots, trained=len(slots))


def load_cells(path: Path, *, dimensions: int, sha256: str, seal: RenewableSeal | None) -> Cells:
    """What was saved. Raises StateUnavailable when it is not as it was written."""
    try:
        with path.open("rb") as file:
            whole = Reader(file, seal).read_all()
    except (OSError, ValueError, KvError) as exc:
        raise StateUnavailable(f"index of answers {path}: {exc}") from exc
    if hashlib.sha256(whole).hexdigest() != sha256 or not whole.startswith(_MAGIC):
        raise StateUnavailable(f"index of answers {path}: damaged")
    count, rows, trained = _COUNTS.unpack_from(whole, len(_MAGIC))
    begin = len(_MAGIC) + _COUNTS.size
    centres = np.frombuffer(whole, "<f4", count * dimensions, begin).reshape(count, dimensions)
    begin += centres.nbytes
    bounds = np.frombuffer(whole, "<i4", count + 1, begin)
    return Cells(centres, bounds, np.frombuffer(whole, "<i4", rows, begin + bounds.nbytes), trained=trained)


def _sorted(centres: Vectors, cells: NDArray[np.int32], slots: Slots, *, trained: int) -> Cells:
    order = np.argsort(cells, kind="stable")
    bounds = np.searchsorted(cells.take(order), np.arange(len(centres) + 1)).astype(np.int32)
    return Cells(centres, bounds, slots.take(order), trained=trained)


def _cells_of(slots: Slots, vectors: Callable[[Slots], Vectors], centres: Vectors) -> NDArray[np.int32]:
    runs = (slots[begin : begin + _AT_ONCE] for begin in range(0, len(slots), _AT_ONCE))
    return np.concatenate([np.zeros(0, np.int32), *(_nearest(vectors(some), centres) for some in runs)])


def _nearest(vectors: Vectors, centres: Vectors) -> NDArray[np.int32]:
    """The number of the centre nearest to each."""
    parts = [
        (vectors[begin : begin + _AT_ONCE] @ centres.T).argmax(axis=1) for begin in range(0, len(vectors), _AT_ONCE)
    ]
    return np.concatenate(parts).astype(np.int32)
