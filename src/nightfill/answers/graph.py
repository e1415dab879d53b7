"""The graph over a large scope's vectors: a file that is written once, searched where it lies, and never changed.

usearch has a small-world graph (Malkov and Yashunin, arXiv 1603.09320) in one file that can be mapped. A changed graph
is another file: so no search meets a writer, and a search costs no memory but pages of the file that the system may
take back. A file is mapped only after its digest was checked, since the library trusts what it reads.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nightfill.answers.files import Reader, drafted, write_whole
from nightfill.errors import KvError, StateUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nightfill.answers.embed import Vectors
    from nightfill.answers.rows import Slots
    from nightfill.state.seal import RenewableSeal

_NEIGHBOURS: Final = 16
_WIDTH_ADDING: Final = 64
_WIDTH_SEARCHING: Final = 64
_AT_ONCE: Final = 10_000


class Graph:
    """A graph in a file. May be searched from several threads."""

    def __init__(self, path: Path, *, serial: int, sha256: str, seal: RenewableSeal | None = None) -> None:
        """Map the file, or open a sealed one into memory. Raises StateUnavailable when it is not as it was written."""
        self.path = path
        self.serial = serial
        """Of the newest row in it."""
        self.sha256 = sha256
        self._opened = b""
        """What is in a sealed one; the index points into it."""
        try:
            if _digest(path) != sha256:
                raise StateUnavailable(f"index of answers {path}: damaged")
            if seal is not None:
                with path.open("rb") as file:
                    self._opened = Reader(file, seal).read_all()
            self._index = _library().restore(self._opened or str(path), view=True)
        except (OSError, RuntimeError, ValueError, KvError) as exc:
            raise StateUnavailable(f"index of answers {path}: {exc}") from exc
        self._index.expansion_search = _WIDTH_SEARCHING

    def __len__(self) -> int:
        return len(self._index)

    def search(self, vector: Vectors, count: int) -> Slots:
        """Rows near the vector, at most so many."""
        keys: Slots = self._index.search(vector, count, threads=1).keys.astype(np.int32)
        return keys

    def slots(self) -> Slots:
        """All rows in it."""
        slots: Slots = np.asarray(self._index.keys).astype(np.int32)
        return slots

    def copy(self) -> Any:
        """The library's own index, in memory and to be changed."""
        return _library().restore(self._opened or str(self.path))


def write_graph(
    path: Path,
    *,
    dimensions: int,
    base: Graph | None,
    drop: Slots,
    slots: Slots,
    vectors: Callable[[Slots], Vectors],
    serial: int,
    seal: RenewableSeal | None = None,
) -> Graph:
    """`base` without `drop` and with further rows, as a new file. `vectors` gives those of some of `slots`.

    Takes about half a millisecond of one core a row. Raises StateUnavailable.
    """
    try:
        if base is None:
            index = _library()(
                ndim=dimensions, metric="cos", dtype="i8", connectivity=_NEIGHBOURS, expansion_add=_WIDTH_ADDING
            )
        else:
            index = base.copy()
            index.expansion_add = _WIDTH_ADDING
            if len(drop):
                index.remove(drop.astype(np.uint64))
        for begin in range(0, len(slots), _AT_ONCE):
            some = slots[begin : begin + _AT_ONCE]
            index.add(some.astype(np.uint64), vectors(some), threads=1)
        if seal is None:
            with drafted(path) as draft:
                index.save(str(draft))
        else:
            write_whole(path, [memoryview(index.save())], seal)
        digest = _digest(path)
    except (OSError, RuntimeError, ValueError) as exc:
        raise StateUnavailable(f"index of answers {path}: {exc}") from exc
    return Graph(path, serial=serial, sha256=digest, seal=seal)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _library() -> Any:
    from usearch.index import Index

    return Index
