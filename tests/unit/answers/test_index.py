"""Near questions are found in their own scope, at once, and after a restart; what is gone is gone."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fakes.seal import XorSeal
from nightfill.answers.index import NearIndex
from nightfill.errors import StateUnavailable
from nightfill.state.answers import AnswerKey, AnswerNote, AnswerScope

if TYPE_CHECKING:
    from pathlib import Path

    from nightfill.answers.embed import Vectors
    from nightfill.answers.rows import Slots

DIMENSIONS = 32


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


_LAST: dict[Path, NearIndex] = {}
S, OTHER = AnswerScope(digest("scope")), AnswerScope(digest("another scope"))


def key(n: int) -> AnswerKey:
    return AnswerKey(digest(f"key {n}"))


def notes(numbers: range, *, scope: AnswerScope = S, first_serial: int | None = None) -> list[AnswerNote]:
    serial = numbers.start + 1 if first_serial is None else first_serial
    return [
        AnswerNote(serial=serial + i, key=key(number), scope=scope, question="?") for i, number in enumerate(numbers)
    ]


def vectors(count: int, seed: int = 0) -> Vectors:
    made = np.random.default_rng(seed).standard_normal((count, DIMENSIONS), dtype=np.float32)
    unit: Vectors = made / np.linalg.norm(made, axis=1, keepdims=True)
    return unit


def opened(folder: Path, *, identity: str = "e", capacity: int = 5000, small: int = 64) -> NearIndex:
    """As by a process that was just started, its predecessor gone."""
    if (last := _LAST.pop(folder, None)) is not None:
        last.close()
    _LAST[folder] = NearIndex(folder, identity=identity, capacity=capacity, small=small, dimensions=DIMENSIONS)
    return _LAST[folder]


def best(index: NearIndex, vector: Vectors, scope: AnswerScope = S) -> AnswerKey | None:
    found = index.nearest(scope, vector, 1)
    return found[0].key if found else None


def cells_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("0/*.cells"))


def test_the_nearest_come_first_with_their_cosines(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(40)
    index.add(notes(range(40)), made)
    exact = made @ made[7]
    found = index.nearest(S, made[7], 5)
    assert [near.key for near in found] == [key(int(n)) for n in np.argsort(-exact)[:5]]
    assert [near.similarity for near in found] == pytest.approx(np.sort(exact)[::-1][:5].tolist(), abs=0.01)
    assert found[0].similarity <= 1.0


def test_a_scope_is_known_to_hold_something_at_once_and_after_a_restart(tmp_path: Path) -> None:
    index, other = opened(tmp_path), AnswerScope(b"x" * 32)
    assert not index.holds(S)
    index.add(notes(range(3)), vectors(3))
    assert (index.holds(S), index.holds(other)) == (True, False)
    index.save()
    again = opened(tmp_path)
    assert (again.holds(S), again.holds(other)) == (True, False)


def test_an_unknown_scope_has_nothing_near(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(4)
    assert index.nearest(S, made[0], 3) == []
    index.add(notes(range(4)), made)
    assert index.nearest(OTHER, made[0], 3) == []


@pytest.mark.parametrize("count", [20, 300])
def test_no_answer_crosses_scopes_not_even_those_that_begin_alike(tmp_path: Path, count: int) -> None:
    index, made = opened(tmp_path), vectors(count)
    alike = AnswerScope(S[:8] + OTHER[8:])
    index.add(notes(range(count)), made)
    index.add(notes(range(1000, 1000 + count), scope=alike), made)
    ours, theirs = {key(n) for n in range(count)}, {key(n) for n in range(1000, 1000 + count)}
    for vector in made[:20]:
        mine, foreign = index.nearest(S, vector, 10), index.nearest(alike, vector, 10)
        assert (len(mine), len(foreign)) == (10, 10)
        assert {near.key for near in mine} <= ours
        assert {near.key for near in foreign} <= theirs
        assert best(index, vector) in ours


def test_a_large_scope_is_found_through_its_cells_and_what_came_since(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(1000)
    index.add(notes(range(900)), made[:900])
    assert len(cells_of(tmp_path)) == 1
    index.add(notes(range(900, 950)), made[900:950])
    assert len(cells_of(tmp_path)) == 1, "few more: no new cells yet"
    assert sum(best(index, made[n]) == key(n) for n in range(950)) >= 940
    assert all(best(index, made[n]) == key(n) for n in range(900, 950)), "the new ones are looked at one by one"
    index.add(notes(range(950, 1000)), made[950:])
    index.save()
    assert len(cells_of(tmp_path)) == 1, "the second took the place of the first"
    assert sum(best(index, made[n]) == key(n) for n in range(1000)) >= 990


def test_a_digest_that_begins_with_zeros_is_one_like_others(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(300)
    scope = AnswerScope(bytes(8) + S[8:])
    index.add(notes(range(300), scope=scope), made)
    index.remove([key(n) for n in range(10)])
    index.save()
    assert sum(best(index, made[n], scope) == key(n) for n in range(10, 300)) >= 287
    assert len(opened(tmp_path)) == 290


def test_many_small_scopes_need_no_cells(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(1000)
    scopes = [AnswerScope(digest(f"scope {n}")) for n in range(50)]
    for n, scope in enumerate(scopes):
        index.add(notes(range(n * 20, n * 20 + 20), scope=scope), made[n * 20 : n * 20 + 20])
    assert all(best(index, made[n], scopes[n // 20]) == key(n) for n in range(1000))
    assert cells_of(tmp_path) == []


def test_what_was_saved_is_there_after_a_restart_and_what_came_later_is_to_be_added(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(300)
    index.add(notes(range(200)), made[:200])
    index.save()
    index.add(notes(range(200, 300)), made[200:])
    again = opened(tmp_path)
    assert (again.serial, len(again)) == (200, 200)
    assert sum(best(again, made[n]) == key(n) for n in range(200)) >= 198
    again.add(notes(range(150, 300)), made[150:])
    assert (again.serial, len(again)) == (300, 300), "those that it had are left out"
    assert sum(best(again, made[n]) == key(n) for n in range(300)) >= 297


@pytest.mark.parametrize("harm", ["flip", "cut", "longer", "empty", "foreign", "head"])
def test_a_damaged_file_is_told_and_begun_anew(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    index, made = opened(tmp_path), vectors(100)
    index.add(notes(range(100)), made)
    index.save()
    path = tmp_path / "0" / "rows.near"
    whole = path.read_bytes()
    harmed = {
        "flip": whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:],
        "cut": whole[:-400],
        "longer": whole + b"x",
        "empty": b"",
        "foreign": b"something else" * 100,
        "head": whole[:8] + b"\xff\xff\xff\x7f" + whole[12:],
    }
    path.write_bytes(harmed[harm])
    again = opened(tmp_path)
    assert (again.serial, len(again)) == (0, 0)
    assert "made anew from the book" in caplog.text
    again.add(notes(range(100)), made)
    again.save()
    assert best(opened(tmp_path), made[3]) == key(3)


def test_another_embedding_begins_anew(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(10)
    index.add(notes(range(10)), made)
    index.save()
    assert opened(tmp_path, identity="another").serial == 0
    assert opened(tmp_path).serial == 10


@pytest.mark.parametrize("harm", ["cut", "gone", "flip"])
def test_damaged_cells_are_never_used_and_made_anew_from_the_rows(tmp_path: Path, harm: str) -> None:
    index, made = opened(tmp_path), vectors(300)
    index.add(notes(range(300)), made)
    index.save()
    (path,) = cells_of(tmp_path)
    whole = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:2000] if harm == "cut" else whole[:2000] + b"\xff" * 500 + whole[2500:])
    again = opened(tmp_path)
    assert again.serial == 300
    assert all(best(again, made[n]) == key(n) for n in range(236, 300)), "until then the newest are found"
    again.save()
    assert sum(best(again, made[n]) == key(n) for n in range(300)) >= 297
    assert sum(best(opened(tmp_path), made[n]) == key(n) for n in range(300)) >= 297


def test_nothing_is_left_of_what_was_removed(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(400)
    index.add(notes(range(300)), made[:300])
    index.add(notes(range(300, 400), scope=OTHER), made[300:])
    index.save()
    assert len(cells_of(tmp_path)) == 2
    assert index.remove([key(n) for n in range(300)] + [key(9999)]) == 300
    assert index.nearest(S, made[0], 5) == []
    assert best(index, made[301], OTHER) == key(301)
    index.save()
    assert len(cells_of(tmp_path)) == 1
    lies = b"".join(path.read_bytes() for path in (tmp_path / "0").iterdir())
    assert bytes(key(5)) not in lies
    assert bytes(S) not in lies
    assert bytes(key(305)) in lies
    assert len(opened(tmp_path)) == 100


def test_cells_of_which_much_was_removed_are_made_anew_without_it(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(600)
    index.add(notes(range(600)), made)
    index.save()
    before = cells_of(tmp_path)[0].stat().st_size
    index.remove([key(n) for n in range(0, 600, 2)])
    assert {near.key for near in index.nearest(S, made[0], 10)} <= {key(n) for n in range(1, 600, 2)}
    index.save()
    assert cells_of(tmp_path)[0].stat().st_size == before - 4 * 300
    assert sum(best(index, made[n]) == key(n) for n in range(1, 600, 2)) >= 297


def test_rows_that_are_free_again_are_taken_again_and_no_cells_mistake_them(tmp_path: Path) -> None:
    index, made = opened(tmp_path, capacity=400), vectors(500, seed=3)
    index.add(notes(range(400)), made[:400])
    index.remove([key(n) for n in range(50)])
    index.add(notes(range(400, 450), scope=OTHER, first_serial=1000), made[400:450])
    assert len(index) == 400
    for vector in made[:50]:
        assert {near.key for near in index.nearest(S, vector, 5)} <= {key(n) for n in range(50, 400)}
    assert all(best(index, made[n], OTHER) == key(n) for n in range(400, 450))


def test_when_it_is_full_the_oldest_make_room(tmp_path: Path) -> None:
    index, made = opened(tmp_path, capacity=200), vectors(500)
    for begin in range(0, 500, 50):
        index.add(notes(range(begin, begin + 50)), made[begin : begin + 50])
    assert len(index) <= 200
    assert sum(best(index, made[n]) == key(n) for n in range(302, 500)) >= 195
    index.add(notes(range(1000, 1300)), vectors(300, seed=9))
    assert len(index) <= 200


def test_an_answer_that_was_put_again_is_found_once(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(10)
    index.add(notes(range(10)), made)
    index.add(notes(range(3, 4), first_serial=100), made[3:4])
    assert [near.key for near in index.nearest(S, made[3], 10)].count(key(3)) == 1
    index.save()
    assert len(index) == 10


def test_all_keys_are_told_in_parts(tmp_path: Path) -> None:
    index, made = opened(tmp_path), vectors(10)
    index.add(notes(range(10)), made)
    index.remove([key(4)])
    told: list[AnswerKey] = []
    begin = 0
    while (some := index.keys(begin, 3)) is not None:
        told += some
        begin += 3
    assert told == [key(n) for n in range(10) if n != 4]


def test_readers_in_threads_see_only_rows_of_their_scope_while_rows_come_and_go(tmp_path: Path) -> None:
    index, made = opened(tmp_path, capacity=300, small=50), vectors(200)
    index.add(notes(range(200)), made)
    ours = {key(n) for n in range(200)} | {key(n) for n in range(1000, 1200, 4)}
    done = threading.Event()
    strays: list[AnswerKey] = []

    def read() -> None:
        rng = np.random.default_rng(1)
        while not done.is_set():
            found = index.nearest(S, made[rng.integers(200)], 5)
            strays.extend(near.key for near in found if near.key not in ours)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    serial = 1000
    for turn in range(60):
        number = 1000 + turn * 2
        scope = S if turn % 2 == 0 else OTHER
        some = range(number + (0 if scope == S else 1), number + (0 if scope == S else 1) + 1)
        index.add(notes(some, scope=scope, first_serial=serial), made[turn : turn + 1])
        index.remove([key(some.start), key(turn)])
        serial += 1
    done.set()
    for reader in readers:
        reader.join()
    assert strays == []


def test_a_row_that_is_taken_by_another_scope_during_a_look_up_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, made = opened(tmp_path), vectors(4)
    index.add(notes(range(3)), made[:3])
    compare = index._rows.cosines

    def meanwhile(slots: Slots, vector: Vectors) -> Vectors:
        cosines = compare(slots, vector)
        if index.remove([key(1)]):
            index.add(notes(range(50, 51), scope=OTHER, first_serial=100), made[3:])
        return cosines

    monkeypatch.setattr(index._rows, "cosines", meanwhile)
    assert {near.key for near in index.nearest(S, made[1], 3)} == {key(0), key(2)}
    assert best(index, made[3], OTHER) == key(50)


def test_with_a_key_nothing_lies_there_in_plain_and_only_that_key_opens_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def started(folder: Path, seal: XorSeal | None) -> NearIndex:
        return NearIndex(folder, identity="e", capacity=5000, small=64, dimensions=DIMENSIONS, seal=seal)

    def lies() -> bytes:
        return b"".join(path.read_bytes() for path in (tmp_path / "0").iterdir())

    made = vectors(300)
    index = started(tmp_path, XorSeal(7))
    index.add(notes(range(200)), made[:200])
    index.add(notes(range(200, 300)), made[200:])
    index.save()
    index.close()
    assert len(cells_of(tmp_path)) == 1
    assert bytes(key(5)) not in lies()
    assert b"NFcells1" not in lies()
    again = started(tmp_path, XorSeal(7))
    assert sum(best(again, made[n]) == key(n) for n in range(300)) >= 297
    again.close()
    assert caplog.records == []
    for other in (XorSeal(8), XorSeal(9, old=7), None):
        refused = started(tmp_path, other)
        assert refused.serial == 0
        refused.close()
    assert [record.message.count("made anew from the book") for record in caplog.records] == [1, 1, 1]
    renewed = started(tmp_path, XorSeal(9, old=7))
    renewed.add(notes(range(300)), made)
    renewed.save()
    renewed.close()
    assert started(tmp_path, XorSeal(9)).serial == 300


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateUnavailable):
        opened(tmp_path / "file")
    index = opened(tmp_path / "near")
    index.add(notes(range(5)), vectors(5))
    (tmp_path / "near" / "0" / "rows.draft").mkdir()
    with pytest.raises(StateUnavailable):
        index.save()
    (tmp_path / "near" / "0" / "rows.draft").rmdir()
    index.save()
    assert opened(tmp_path / "near").serial == 5


def test_only_the_owner_may_read_what_was_saved(tmp_path: Path) -> None:
    index = opened(tmp_path / "near")
    index.add(notes(range(200)), vectors(200))
    index.save()
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "near" / "0").iterdir()}
    assert modes == {0o600}
    assert (tmp_path / "near").stat().st_mode & 0o777 == 0o700


def test_processes_that_share_a_folder_do_not_meet_in_it(tmp_path: Path) -> None:
    first, second, made = opened(tmp_path), NearIndex(tmp_path, identity="e", dimensions=DIMENSIONS), vectors(200)
    first.add(notes(range(200)), made)
    first.save()
    second.add(notes(range(5)), made[:5])
    second.save()
    second.close()
    assert opened(tmp_path).serial == 200
    other = NearIndex(tmp_path, identity="e", dimensions=DIMENSIONS)
    assert other.serial == 5
    other.close()
