"""What one process wants kept, heeded by others that share its folder. Two stores stand for two processes."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fakes.kv import SALT, FakeClock, MakeDisk, MakeSample, MakeStore, Sample
from nightfill.errors import TierFull
from nightfill.kv.seal import checksum
from nightfill.kv.tiers import retention
from nightfill.kv.tiers.folder import DRAFT_AGE_S
from nightfill.kv.tiers.retention import MAX_ENTRIES, RENEW_S, STALE_S, Ruling, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nightfill.kv.store import Store

    Pair = Callable[[], tuple[Store, Store]]

BLOCK = 8192
"""Bytes of a sealed sample of 4096."""
NOW_S = 1_700_000_000.0


def put(store: Store, *samples: Sample) -> None:
    for one in samples:
        store.put(one.key, [one.payload], one.meta, salt=SALT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv" / "v1" / "retention"


@pytest.fixture
def abc(sample: MakeSample) -> tuple[Sample, Sample, Sample]:
    return sample(1, 4096), sample(2, 4096), sample(3, 4096)


@pytest.fixture
def pair(make_store: MakeStore, make_disk: MakeDisk) -> tuple[Store, Store]:
    """The one that rules, and another; both over one folder with room for two blocks."""
    return make_store(make_disk(max_bytes=2 * BLOCK)), make_store(make_disk(max_bytes=2 * BLOCK))


def fill_folder(pair: tuple[Store, Store], clock: FakeClock, *samples: Sample) -> None:
    """Written by the one that rules, the first the longest ago."""
    for one in samples:
        put(pair[0], one)
        clock.advance(1)


def test_a_pinned_block_outlives_eviction_by_another_process(
    pair: tuple[Store, Store], abc: tuple[Sample, Sample, Sample], clock: FakeClock
) -> None:
    (ruler, other), (a, b, c) = pair, abc
    fill_folder(pair, clock, a, b)
    ruler.pin([a.key])
    ruler.publish()
    put(other, c)
    assert other.has_many([a.key, b.key, c.key]) == [True, False, True]
    ruler.pin([a.key, c.key])
    ruler.publish()
    with pytest.raises(TierFull):
        put(other, b)
    ruler.pin([])
    ruler.publish()
    put(other, b)
    assert other.has(a.key) is False


def test_without_a_ruler_another_process_evicts_by_last_use(
    pair: tuple[Store, Store], abc: tuple[Sample, Sample, Sample], clock: FakeClock, path: Path
) -> None:
    (ruler, other), (a, b, c) = pair, abc
    fill_folder(pair, clock, a, b)
    ruler.pin([a.key])
    put(other, c)
    assert other.has_many([a.key, b.key, c.key]) == [False, True, True]
    assert not path.exists()


def test_another_process_evicts_what_is_worth_least_and_stores_by_the_same_values(
    pair: tuple[Store, Store], abc: tuple[Sample, Sample, Sample], clock: FakeClock, sample: MakeSample
) -> None:
    (ruler, other), (a, b, c) = pair, abc
    fill_folder(pair, clock, a, b)
    ruler.retain({a.key: 2.0, b.key: 1.0})
    ruler.publish()
    with pytest.raises(TierFull):
        put(other, c)
    with ruler.hold([c.key], value=1.5):
        ruler.publish()
        put(other, c)
    assert other.has_many([a.key, b.key, c.key]) == [True, False, True]


def test_the_larger_value_counts(
    pair: tuple[Store, Store], abc: tuple[Sample, Sample, Sample], clock: FakeClock
) -> None:
    (ruler, other), (a, b, c) = pair, abc
    fill_folder(pair, clock, a, b)
    ruler.retain({a.key: 2.0, b.key: 3.0, c.key: 9.0})
    ruler.publish()
    other.retain({a.key: 4.0, b.key: 1.0})
    put(other, c)
    assert other.has_many([a.key, b.key, c.key]) == [True, False, True]


def test_the_ruler_goes_by_what_it_wants_now_not_by_what_it_told(
    pair: tuple[Store, Store], abc: tuple[Sample, Sample, Sample], clock: FakeClock
) -> None:
    (ruler, _), (a, b, c) = pair, abc
    fill_folder(pair, clock, a, b)
    ruler.pin([a.key])
    ruler.publish()
    ruler.pin([])
    put(ruler, c)
    assert ruler.has(a.key) is False


def test_what_a_dead_ruler_told_counts_for_a_day(
    pair: tuple[Store, Store], abc: tuple[Sample, Sample, Sample], clock: FakeClock
) -> None:
    (ruler, other), (a, b, c) = pair, abc
    fill_folder(pair, clock, a, b)
    ruler.pin([a.key, b.key])
    ruler.publish()
    clock.advance(STALE_S - 1)
    with pytest.raises(TierFull):
        put(other, c)
    clock.advance(1)
    put(other, c)
    assert other.has_many([a.key, b.key]) == [False, True]


def test_it_is_written_when_it_changed_and_anew_each_hour(
    pair: tuple[Store, Store], abc: tuple[Sample, Sample, Sample], clock: FakeClock, path: Path
) -> None:
    (ruler, other), (a, b, _) = pair, abc

    def writes(store: Store) -> bool:
        before = path.read_bytes()
        clock.advance(1)  # so that what is written is never the same
        store.publish()
        return path.read_bytes() != before

    ruler.retain({a.key: 1.0})
    ruler.publish()
    assert not writes(ruler)
    ruler.retain({a.key: 0.96})
    assert not writes(ruler)
    ruler.retain({a.key: 0.9})
    assert writes(ruler)
    ruler.retain({a.key: 0.9, b.key: 0.1})
    assert writes(ruler)
    ruler.pin([a.key])
    assert writes(ruler)
    clock.advance(RENEW_S)
    assert writes(ruler)
    assert writes(other)
    assert writes(ruler)
    path.unlink()
    ruler.publish()
    assert path.exists()


def test_the_file_is_read_once_for_each_change(
    pair: tuple[Store, Store], abc: tuple[Sample, Sample, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    (ruler, other), (a, b, c) = pair, abc
    reads = 0

    def counting(raw: bytes) -> Ruling | None:
        nonlocal reads
        reads += 1
        return decode(raw)

    monkeypatch.setattr(retention, "decode", counting)
    ruler.publish()
    for one in (a, b, c, a):
        put(other, one)
        other.get(one.key, salt=SALT)
    assert reads == 1
    ruler.pin([a.key])
    ruler.publish()
    other.get(a.key, salt=SALT)
    assert reads == 1
    put(other, b)
    assert reads == 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign", "version", "nan", "folder", "huge"])
def test_a_file_that_is_damaged_or_foreign_counts_as_none_and_is_replaced(
    pair: tuple[Store, Store],
    abc: tuple[Sample, Sample, Sample],
    clock: FakeClock,
    path: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (ruler, other), (a, b, c) = pair, abc
    fill_folder(pair, clock, a, b)
    ruler.pin([a.key])
    ruler.publish()
    raw = path.read_bytes()
    path.unlink()

    def resealed(body: bytes) -> bytes:
        return body + checksum(body)

    bad = {
        "flipped": raw[:30] + bytes([raw[30] ^ 1]) + raw[31:],
        "cut": raw[:-40],
        "empty": b"",
        "foreign": resealed(b"something" + raw[9:-16]),
        "version": resealed(raw[:8] + b"\2" + raw[9:-16]),
        "nan": resealed(raw[:-24] + struct.pack("<d", math.nan)),
    }
    if damage == "folder":
        path.mkdir()
    elif damage == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.write_bytes(bad[damage])
    put(other, c)
    assert other.has_many([a.key, b.key, c.key]) == [False, True, True]
    assert "left alone" in caplog.text
    if damage != "folder":
        ruler.publish()
        assert decode(path.read_bytes()) == decode(raw)


def test_no_failure_of_it_fails_a_write(
    pair: tuple[Store, Store],
    abc: tuple[Sample, Sample, Sample],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (ruler, other), (a, _, _) = pair, abc

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(retention.RetentionFile, "_look", fails)
    caplog.set_level(logging.WARNING)
    ruler.publish()
    ruler.publish()
    assert caplog.text.count("cannot tell what is to be kept") == 1
    put(other, a)
    assert other.has(a.key)


def test_a_failed_write_of_it_leaves_the_old_one_and_no_draft(
    pair: tuple[Store, Store],
    abc: tuple[Sample, Sample, Sample],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (ruler, _), (a, _, _) = pair, abc
    ruler.publish()
    before = path.read_bytes()

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    ruler.pin([a.key])
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "rename", fails)
        ruler.publish()
    assert path.read_bytes() == before
    assert list(path.parent.joinpath("drafts").iterdir()) == []
    ruler.publish()
    assert path.read_bytes() != before


def test_it_is_no_block_and_no_orphan(
    pair: tuple[Store, Store],
    abc: tuple[Sample, Sample, Sample],
    clock: FakeClock,
    path: Path,
    make_disk: MakeDisk,
) -> None:
    ruler, other = pair
    put(ruler, abc[0])
    ruler.publish()
    assert path.stat().st_mode & 0o777 == 0o600
    os.utime(path, times=(NOW_S - 10 * DRAFT_AGE_S, NOW_S - 10 * DRAFT_AGE_S))
    assert [record.key for record in make_disk().records()] == [abc[0].key]
    clock.advance(1e6)
    assert other.sweep(set()) == 1
    make_disk()
    assert path.exists()


def test_a_folder_that_was_deleted_and_made_again_is_told_again(
    pair: tuple[Store, Store],
    abc: tuple[Sample, Sample, Sample],
    clock: FakeClock,
    path: Path,
) -> None:
    (ruler, other), (a, b, c) = pair, abc
    ruler.pin([a.key])
    ruler.publish()
    put(other, a)
    shutil.rmtree(path.parent.parent)
    ruler.publish()
    fill_folder(pair, clock, a, b)
    put(other, c)
    assert other.has_many([a.key, b.key, c.key]) == [True, False, True]


RULES = """
import pathlib, sys
from nightfill.kv.buffer import Buffers
from nightfill.kv.seal import ChecksumSealer
from nightfill.kv.store import Store
from nightfill.kv.tiers.disk import DiskTier
buffers, now_s = Buffers(), float(sys.argv[2])
disk = DiskTier(pathlib.Path(sys.argv[1]), max_bytes=1 << 20, buffers=buffers, clock=lambda: now_s)
store = Store([disk], ChecksumSealer(buffers), ttl_s=3600, clock=lambda: now_s)
store.pin([bytes.fromhex(sys.argv[3])])
store.publish()
store.close()
"""


def test_a_ruler_in_another_process_is_heeded_also_after_its_end(
    pair: tuple[Store, Store], abc: tuple[Sample, Sample, Sample], clock: FakeClock, tmp_path: Path
) -> None:
    (_, other), (a, b, c) = pair, abc
    fill_folder(pair, clock, a, b)
    command = [sys.executable, "-c", RULES, str(tmp_path / "kv"), str(clock.now_s), a.key.hex()]
    subprocess.run(command, check=True, timeout=60)
    put(other, c)
    assert other.has_many([a.key, b.key, c.key]) == [True, False, True]


def test_what_is_too_much_is_cut_to_pins_and_what_is_worth_most(
    sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_ENTRIES", 3)
    keys = [sample(number).key for number in range(6)]
    values = {key: float(place) for place, key in enumerate(keys)}
    told = decode(encode(Ruling(written_s=NOW_S, pinned=frozenset(keys[:1]), values=values)))
    assert told == Ruling(written_s=NOW_S, pinned=frozenset(keys[:1]), values={keys[4]: 4.0, keys[5]: 5.0})
    assert MAX_ENTRIES * 40 < 11 << 20
