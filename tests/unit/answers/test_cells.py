from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from nightfill.answers.cells import Cells, load_cells, make_cells
from nightfill.errors import StateUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from nightfill.answers.embed import Vectors
    from nightfill.answers.rows import Slots

DIMENSIONS = 24
DRAWN = np.random.default_rng(7).normal(size=(5000, DIMENSIONS)).astype(np.float32)
VECTORS: Vectors = DRAWN / np.linalg.norm(DRAWN, axis=1, keepdims=True)


def of(slots: Slots) -> Vectors:
    return VECTORS[slots]


def some(*span: int) -> Slots:
    return np.arange(*span, dtype=np.int32)


def found(cells: Cells, slots: Slots) -> int:
    """How many of the rows are among those that they propose for a vector close to their own."""
    return sum(int(slot) in set(cells.near(0.98 * VECTORS[slot] + 0.01).tolist()) for slot in slots)


def test_the_nearest_cells_have_most_of_what_is_near_and_few_of_the_rest() -> None:
    cells = make_cells(some(5000), of)
    assert len(cells) == 5000
    assert sorted(cells.slots.tolist()) == list(range(5000))
    assert found(cells, some(0, 5000, 10)) >= 490
    wide = [len(cells.near(VECTORS[slot])) for slot in range(0, 5000, 50)]
    assert max(wide) < 0.9 * 5000


def test_the_same_rows_make_the_same_cells() -> None:
    one, other = make_cells(some(1000), of), make_cells(some(1000), of)
    assert (one.slots == other.slots).all()
    assert (one.centres == other.centres).all()


def test_rows_come_and_go_without_the_others_moving() -> None:
    first = make_cells(some(2000), of)
    second = first.changed(some(0, 500), some(2000, 2300), of)
    assert len(first) == 2000, "one that is searched does not change"
    assert sorted(second.slots.tolist()) == list(range(500, 2300))
    assert (second.centres == first.centres).all()
    assert second.trained == 2000
    assert found(second, some(2000, 2300)) >= 290


def test_vectors_that_are_all_alike_are_found() -> None:
    cells = make_cells(some(300), lambda slots: np.ones((len(slots), DIMENSIONS), np.float32))
    assert sorted(cells.near(np.ones(DIMENSIONS, np.float32)).tolist()) == list(range(300))


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    cells, path = make_cells(some(1000), of), tmp_path / "s.cells"
    digest = cells.save(path, None)
    again = load_cells(path, dimensions=DIMENSIONS, sha256=digest, seal=None)
    assert (again.near(VECTORS[3]) == cells.near(VECTORS[3])).all()
    assert (len(again), again.trained) == (1000, 1000)


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "other"])
def test_what_is_not_as_it_was_written_is_refused(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "s.cells"
    digest = make_cells(some(1000), of).save(path, None)
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-5] if harm == "cut" else data)
    if harm == "gone":
        path.unlink()
    if harm == "other":
        make_cells(some(999), of).save(path, None)
    with pytest.raises(StateUnavailable):
        load_cells(path, dimensions=DIMENSIONS, sha256=digest, seal=None)
