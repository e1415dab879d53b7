"""Which stored questions are near one that is asked.

Of a small scope all rows are compared, exactly. A large one has cells too, of the rows that were there when they were
made; the nearest ones propose some, those that came since are all looked at, and all are compared exactly. The index is
a copy of what the book of answers says: whoever finds an answer in it asks the book whether it is still there.

Memory for an answer: 472 bytes, of which 460 also lie in the file; 8 more in a scope that is large.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from nightfill.answers.cells import load_cells, make_cells
from nightfill.answers.embed import DIMENSIONS
from nightfill.answers.rows import CellsFile, Head, Rows, as_words
from nightfill.errors import StateUnavailable
from nightfill.state.answers import AnswerKey, AnswerScope

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from nightfill.answers.cells import Cells
    from nightfill.answers.embed import Vectors
    from nightfill.answers.rows import Slots
    from nightfill.state.answers import AnswerNote
    from nightfill.state.seal import RenewableSeal

_LOG: Final = logging.getLogger(__name__)
SMALL: Final = 2048
"""Rows that are compared for one look-up."""
_ROWS: Final = "rows.near"
_LEFT_OVER: Final = (".cells", ".draft")
_PARTS: Final = 64
_AT_ONCE: Final = 1 << 16
_NONE: Final = np.zeros(0, np.int32)


class Near(NamedTuple):
    """A stored question that is near."""

    key: AnswerKey
    similarity: float
    """The cosine, up to 1."""


class _Order(NamedTuple):
    """Rows sorted by the beginning of their scope, then by serial; as they were when it was made."""

    heads: NDArray[np.uint64]
    serials: NDArray[np.uint64]
    slots: Slots

    def of(self, scope: AnswerScope) -> slice:
        """Where the rows of a scope are, and perhaps those of others that begin alike."""
        head = as_words([scope])[0, 0]
        return slice(int(np.searchsorted(self.heads, head)), int(np.searchsorted(self.heads, head, side="right")))


class _View(NamedTuple):
    """What a reader goes by; replaced as a whole."""

    order: _Order
    recent: dict[AnswerScope, tuple[int, ...]]
    """Rows that came since `order` was made."""


class _Saved(NamedTuple):
    """Cells with their file."""

    cells: Cells
    path: Path
    sha256: str
    serial: int
    """Of the newest row in them."""


class NearIndex:
    """At most `capacity` rows; the oldest make room. Several processes may share a folder: each has a part of its own.

    `nearest` may be called from any thread, also while one of the others works; these wait for each other, and take
    from milliseconds to minutes (cells of a million rows): call them from a thread. They raise StateUnavailable when
    the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        capacity: int = 1_000_000,
        small: int = SMALL,
        dimensions: int = DIMENSIONS,
        seal: RenewableSeal | None = None,
    ) -> None:
        """Bring back what was saved; begin empty when it is damaged or of another embedding than `identity`.

        With a `seal`, what lies on disk is sealed. What lies there without it, with another one or under an old key is
        not used.

        Takes seconds for a million rows. Raises StateUnavailable when the folder cannot be made.
        """
        self._identity, self._dimensions, self._small, self._seal = identity, dimensions, small, seal
        self._writing = threading.Lock()
        self._cells: dict[AnswerScope, _Saved] = {}
        self._serial = 0
        self._changed = self._removed = False
        self._folder, self._lock = _own_part(folder)
        self._rows, files = self._load(capacity)
        self._sort()
        for file in files:
            try:
                path = self._folder / file.name
                cells = load_cells(path, dimensions=dimensions, sha256=file.sha256, seal=seal)
                self._cells[AnswerScope(bytes.fromhex(file.scope))] = _Saved(cells, path, file.sha256, file.serial)
            except StateUnavailable as exc:
                self._changed = True
                _LOG.warning("%s; it is made anew from the rows", exc)

    def close(self) -> None:
        """Leave the folder to another one; what was not saved is lost to it. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def serial(self) -> int:
        """The newest that was added: what came after it is to be added. 0 for none."""
        return self._serial

    def __len__(self) -> int:
        return len(self._rows)

    def holds(self, scope: AnswerScope) -> bool:
        """Whether there is anything of the scope, or perhaps was. Takes microseconds; from any thread."""
        order, recent = self._view
        there = order.of(scope)
        return there.start < there.stop or scope in recent

    def nearest(self, scope: AnswerScope, vector: Vectors, k: int = 8) -> list[Near]:
        """The `k` nearest of the scope, the nearest first. `vector`: float32, of length 1."""
        (order, recent), saved, rows = self._view, self._cells.get(scope), self._rows
        there = order.of(scope)
        begin = there.start
        proposed = _NONE
        if saved is not None:
            begin += int(np.searchsorted(order.serials[there], saved.serial, side="right"))
            proposed = saved.cells.near(vector)
        # More than that only while cells are being made: then the newest ones.
        begin = max(begin, there.stop - self._small)
        new = np.array(recent.get(scope, ())[-self._small :], np.int32)
        slots = np.concatenate((proposed, order.slots[begin : there.stop], new))
        last = np.full(len(slots), np.iinfo(np.uint64).max)
        if saved is not None:
            # A row that was freed and taken again is no longer the one that the cells have.
            last[: len(proposed)] = saved.serial
            # Whose they are is looked up for the nearest alone: rows lie far apart.
            nearest = _largest(rows.cosines(slots, vector), 16 * k)
            slots, last = slots[nearest], last[nearest]
        wanted, serials = as_words([scope]), rows.serials[slots]
        mine = (rows.scopes[slots] == wanted).all(axis=1) & (serials <= last)
        slots, serials = slots[mine], serials[mine]
        cosines = rows.cosines(slots, vector)
        best = _largest(cosines, 2 * k)
        keys = [AnswerKey(key.tobytes()) for key in rows.keys[slots[best]]]
        # Read before this, and the same after it: none was written meanwhile.
        still = (rows.scopes[slots[best]] == wanted).all(axis=1) & (rows.serials[slots[best]] == serials[best])
        found: dict[AnswerKey, float] = {}
        for key, cosine, sound in zip(keys, cosines[best].tolist(), still.tolist(), strict=True):
            if sound:
                found.setdefault(key, min(cosine, 1.0))
        return [Near(key, cosine) for key, cosine in found.items()][:k]

    def add(self, notes: Sequence[AnswerNote], vectors: Vectors) -> None:
        """Add what the book told, in its order, with the vectors of the questions, each of length 1.

        Those up to `serial` are there already, and left out.
        """
        with self._writing:
            first = next((n for n, note in enumerate(notes) if note.serial > self._serial), len(notes))
            first = max(first, len(notes) - self._rows.capacity)
            if first == len(notes):
                return
            notes, vectors = notes[first:], vectors[first:]
            self._make_room(len(notes))
            slots = self._rows.put(notes, vectors)
            self._serial = notes[-1].serial
            self._changed = True
            new: dict[AnswerScope, list[int]] = {}
            for note, slot in zip(notes, slots.tolist(), strict=True):
                new.setdefault(note.scope, []).append(slot)
            recent = self._view.recent
            for scope, some in new.items():
                recent[scope] = (*recent.get(scope, ()), *some)
            self._recent += len(notes)
            if self._recent > max(self._small, self._rows.used // 64):
                self._sort()
            for scope in new:
                self._grow(scope)

    def remove(self, keys: Iterable[AnswerKey]) -> int:
        """Forget answers; how many rows had one. `save` then leaves nothing of them on disk but what they gave to the
        centres of cells.
        """
        wanted = as_words(list(keys))
        with self._writing:
            rows = self._rows
            known = {key.tobytes() for key in wanted}
            maybe: list[int] = []
            for begin in range(0, rows.used, _AT_ONCE):
                some = rows.keys[begin : min(begin + _AT_ONCE, rows.used), 0]
                maybe += (np.flatnonzero(np.isin(some, wanted[:, 0])) + begin).tolist()
            found = np.array([slot for slot in maybe if rows.keys[slot].tobytes() in known], np.int32)
            if len(found):
                rows.forget(found)
                self._changed = self._removed = True
            return len(found)

    def keys(self, begin: int, count: int) -> list[AnswerKey] | None:
        """Of so many rows from `begin` on, the keys of those that are taken; None at the end."""
        rows = self._rows
        if begin >= rows.used:
            return None
        some = slice(begin, min(begin + count, rows.used))
        taken = rows.scopes[some].any(axis=1)
        return [AnswerKey(key.tobytes()) for key in rows.keys[some][taken]]

    def save(self) -> None:
        """Write what changed, so that it is brought back. Also makes cells that are missing."""
        with self._writing:
            if not self._changed:
                return
            self._sort()
            for scope in self._large():
                self._grow(scope)
            if self._removed:
                self._clear_cells()
            files = tuple(
                CellsFile(scope=scope.hex(), name=saved.path.name, serial=saved.serial, sha256=saved.sha256)
                for scope, saved in self._cells.items()
            )

            def head(rows: int) -> Head:
                return Head(
                    identity=self._identity,
                    dimensions=self._dimensions,
                    rows=rows,
                    serial=self._serial,
                    cells=files,
                )

            self._rows.save(self._folder / _ROWS, head, self._seal)
            self._changed = self._removed = False
            kept = {file.name for file in files}
            with contextlib.suppress(OSError):
                for path in self._folder.iterdir():
                    if path.suffix in _LEFT_OVER and path.name not in kept:
                        path.unlink(missing_ok=True)

    def _load(self, capacity: int) -> tuple[Rows, tuple[CellsFile, ...]]:
        path = self._folder / _ROWS
        if path.exists():
            try:
                rows, head = Rows.load(
                    path,
                    capacity=capacity,
                    identity=self._identity,
                    dimensions=self._dimensions,
                    seal=self._seal,
                )
            except StateUnavailable as exc:
                _LOG.warning("%s; it is made anew from the book", exc)
            else:
                self._serial = head.serial
                return rows, head.cells
        return Rows(capacity, self._dimensions), ()

    def _sort(self) -> None:
        self._view = _View(self._sorted(), {})
        self._recent = 0

    def _sorted(self) -> _Order:
        """Also frees rows of answers that have another, newer row.

        What takes long here leaves the interpreter to others: sorting and `take`, not indexing.
        """
        rows = self._rows
        scopes, keys = rows.scopes[: rows.used, 0].copy(), rows.keys[: rows.used, 0].copy()
        serials = rows.serials[: rows.used]
        by_key = np.lexsort((serials, keys)).astype(np.int32)
        by_key = by_key[rows.taken().take(by_key)]
        keys = keys.take(by_key)
        alike = np.flatnonzero(keys[:-1] == keys[1:])
        older = by_key[alike][(rows.keys[by_key[alike]] == rows.keys[by_key[alike + 1]]).all(axis=1)]
        rows.forget(older)
        slots = np.lexsort((serials, scopes)).astype(np.int32)
        slots = slots[rows.taken().take(slots)]
        return _Order(scopes.take(slots), serials.take(slots), slots)

    def _large(self) -> list[AnswerScope]:
        """Scopes of which there may be too many rows to compare them all."""
        order = self._view.order
        heads, first, counts = np.unique(order.heads, return_index=True, return_counts=True)
        del heads
        return [AnswerScope(self._rows.scopes[order.slots[begin]].tobytes()) for begin in first[counts > self._small]]

    def _grow(self, scope: AnswerScope) -> None:
        """Make new cells if too many rows came since the last ones."""
        order, recent = self._view
        there, saved = order.of(scope), self._cells.get(scope)
        after = 0 if saved is None else int(np.searchsorted(order.serials[there], saved.serial, side="right"))
        if there.stop - there.start - after + len(recent.get(scope, ())) <= self._small:
            return
        if recent:
            self._sort()
        self._build(scope, saved)

    def _build(self, scope: AnswerScope, base: _Saved | None) -> None:
        slots, rows = self._of(scope), self._rows
        cells = None
        if base is not None:
            had = base.cells.slots
            sound = np.intersect1d(had, slots[rows.serials[slots] <= base.serial])
            drop = np.setdiff1d(had, sound)
            if 3 * len(drop) <= len(had) and 2 * len(slots) <= 3 * base.cells.trained:
                cells = base.cells.changed(drop, np.setdiff1d(slots, sound), rows.vectors)
        if cells is None:
            cells = make_cells(slots, rows.vectors)
        serial = int(rows.serials[slots].max())
        path = self._folder / f"{scope.hex()[:32]}-{serial}-{len(slots)}.cells"
        self._cells = {**self._cells, scope: _Saved(cells, path, cells.save(path, self._seal), serial)}
        self._changed = True

    def _clear_cells(self) -> None:
        """Those of scopes that are no longer large go, and those are made anew of which a third has gone."""
        for scope, saved in list(self._cells.items()):
            slots = self._of(scope)
            if len(slots) <= self._small:
                self._cells = {other: kept for other, kept in self._cells.items() if other != scope}
            elif 3 * int((self._rows.serials[slots] <= saved.serial).sum()) < 2 * len(saved.cells):
                self._build(scope, None)

    def _of(self, scope: AnswerScope) -> Slots:
        order = self._view.order
        slots = order.slots[order.of(scope)]
        mine: Slots = slots[(self._rows.scopes[slots] == as_words([scope])).all(axis=1)]
        return mine

    def _make_room(self, count: int) -> None:
        rows = self._rows
        missing = len(rows) + count - rows.capacity
        if missing > 0:
            slots = np.flatnonzero(rows.taken()).astype(np.int32)
            # Some more than are needed now, or each one would look for the oldest.
            missing = min(len(slots), max(missing, rows.capacity // 100))
            rows.forget(slots[np.argpartition(rows.serials[slots], missing - 1)[:missing]])
            self._removed = True


def _own_part(folder: Path) -> tuple[Path, int | None]:
    """The first part that no living process has, and the lock that makes it ours."""
    try:
        for number in range(_PARTS):
            part = folder / str(number)
            for path in (folder, part):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(part / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return part, lock
    except OSError as exc:
        raise StateUnavailable(f"index of answers {folder}: {exc}") from exc
    raise StateUnavailable(f"index of answers {folder}: all its {_PARTS} parts belong to running processes")


def _largest(values: Vectors, count: int) -> NDArray[np.intp]:
    """Where the largest values are, the largest first."""
    if len(values) > count:
        some = np.argpartition(values, len(values) - count)[len(values) - count :]
    else:
        some = np.arange(len(values))
    return some[np.argsort(-values[some], kind="stable")]
