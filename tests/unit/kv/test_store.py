from __future__ import annotations

import logging
import os
import shutil
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.kv import MASTER, SALT, FakeClock, MakeDisk, MakeSample, MakeStore, MakeTier, Sample
from nightfill.errors import KvError, TierFull, TierUnavailable
from nightfill.kv.block import sealed_bytes
from nightfill.kv.cipher import AesGcmSealer
from nightfill.kv.key import Span
from nightfill.kv.roles import Policy
from nightfill.kv.seal import ChecksumSealer
from nightfill.kv.store import Store
from nightfill.kv.tiers.disk import DiskTier
from nightfill.kv.tiers.ram import RamTier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from nightfill.kv.block import Block
    from nightfill.kv.buffer import Buffers
    from nightfill.kv.eviction import Record
    from nightfill.kv.key import BlockKey
    from nightfill.kv.report import TierReport
    from nightfill.kv.seal import Sealer
    from nightfill.kv.tier import Tier, Usage


class BrokenTier:
    """A tier whose every call fails, until it is told to pass them on."""

    def __init__(self, tier: RamTier | DiskTier, error: KvError) -> None:
        self._tier = tier
        self._error: KvError | None = error
        self.name, self.kind, self.durable = tier.name, tier.kind, tier.durable

    def repair(self) -> None:
        self._error = None

    def _check(self) -> None:
        if self._error:
            raise self._error

    def read(self, key: BlockKey) -> memoryview | None:
        self._check()
        return self._tier.read(key)

    def write(self, key: BlockKey, sealed: memoryview) -> None:
        self._check()
        self._tier.write(key, sealed)

    def length(self, key: BlockKey) -> int | None:
        self._check()
        return self._tier.length(key)

    def lengths(self, keys: Sequence[BlockKey]) -> list[int | None]:
        self._check()
        return self._tier.lengths(keys)

    def touch(self, key: BlockKey) -> None:
        self._tier.touch(key)

    def drop(self, key: BlockKey) -> bool:
        self._check()
        return self._tier.drop(key)

    def pin(self, keys: frozenset[BlockKey]) -> None:
        self._tier.pin(keys)

    def records(self) -> tuple[Record, ...]:
        self._check()
        return self._tier.records()

    def usage(self) -> Usage:
        return self._tier.usage()

    def close(self) -> None:
        self._tier.close()


def put(store: Store, *samples: Sample, hot: bool = False) -> None:
    for one in samples:
        store.put(one.key, [one.payload], one.meta, salt=SALT, hot=hot)


def holds(block: Block | None, one: Sample) -> bool:
    return block is not None and block.meta == one.meta and bytes(block.payload) == one.payload


def of(store: Store, name: str) -> TierReport:
    return next(tier for tier in store.report().tiers if tier.name == name)


def file_of(root: Path, one: Sample) -> Path:
    digits = one.key.hex()
    return root / "v1" / digits[:2] / f"{digits}.kv"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kv"


@pytest.fixture
def store(make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sealer: Sealer) -> Store:
    return make_store(make_ram(name="ram"), make_disk(), sealer=sealer)


@pytest.mark.parametrize("nbytes", [0, 1, 10_000, 4096, (1 << 20) + 1])
def test_what_was_put_is_got(store: Store, sample: MakeSample, nbytes: int) -> None:
    one = sample(1, nbytes)
    put(store, one)
    for _ in range(2):
        assert holds(store.get(one.key, salt=SALT), one)


def test_parts_of_any_type_are_put_together(store: Store, sample: MakeSample) -> None:
    from array import array

    one = sample(1)
    parts: list[Buffer] = [b"ab", bytearray(b"cd"), array("H", [1, 2]), memoryview(bytes(6)).cast("B", (2, 3)), b""]
    store.put(one.key, parts, one.meta, salt=SALT)
    block = store.get(one.key, salt=SALT)
    assert block is not None
    assert bytes(block.payload) == b"abcd" + array("H", [1, 2]).tobytes() + bytes(6)


def test_an_absent_block_is_a_counted_miss(store: Store, sample: MakeSample) -> None:
    assert store.get(sample(1).key, salt=SALT) is None
    assert not store.has(sample(1).key)
    assert (of(store, "ram").misses, of(store, "disk").misses) == (1, 1)


def test_a_put_goes_to_disk_and_a_read_brings_it_to_ram(store: Store, sample: MakeSample) -> None:
    one = sample(1)
    put(store, one)
    assert (of(store, "ram").blocks, of(store, "disk").blocks) == (0, 1)
    store.get(one.key, salt=SALT)
    assert (of(store, "ram").blocks, of(store, "disk").hits) == (1, 1)
    store.get(one.key, salt=SALT)
    assert (of(store, "ram").hits, of(store, "disk").hits) == (1, 1)
    assert of(store, "disk").read_bytes == of(store, "disk").written_bytes == sealed_bytes(8192)


def test_what_is_in_memory_is_known_without_a_look_at_the_disk(store: Store, sample: MakeSample) -> None:
    one = sample(1)
    put(store, one)
    assert not store.in_memory(one.key)
    store.get(one.key, salt=SALT)
    assert store.in_memory(one.key)


def test_a_hot_put_goes_to_ram_at_once(store: Store, sample: MakeSample) -> None:
    put(store, sample(1), hot=True)
    assert (of(store, "ram").blocks, of(store, "disk").blocks) == (1, 1)


def test_forgetting_takes_copies_from_caches_and_leaves_what_is_kept(store: Store, sample: MakeSample) -> None:
    one, other = sample(1), sample(2)
    put(store, one, other, hot=True)
    store.forget([one.key])
    assert (of(store, "ram").blocks, of(store, "disk").blocks) == (1, 2)
    assert holds(store.get(one.key, salt=SALT), one)
    assert of(store, "disk").hits == 1


def test_a_put_of_what_is_there_is_only_a_use(store: Store, sample: MakeSample, clock: FakeClock, root: Path) -> None:
    one = sample(1)
    put(store, one)
    before = file_of(root, one).stat().st_ino
    clock.advance(100)
    put(store, one)
    found = file_of(root, one).stat()
    assert (found.st_ino, found.st_mtime) == (before, clock())
    assert of(store, "disk").written == 1


def test_a_put_over_a_truncated_file_writes_it_anew(store: Store, sample: MakeSample, root: Path) -> None:
    one = sample(1)
    put(store, one)
    os.truncate(file_of(root, one), 4096)
    put(store, one)
    assert holds(store.get(one.key, salt=SALT), one)


def test_get_many_keeps_the_order_and_the_gaps(store: Store, sample: MakeSample) -> None:
    samples = [sample(number, 3000 * number) for number in range(20)]
    put(store, *samples[::2])
    store.get(samples[4].key, salt=SALT)
    found = store.get_many([one.key for one in samples], salt=SALT)
    assert [block is not None for block in found] == [True, False] * 10
    assert all(holds(block, one) for block, one in zip(found[::2], samples[::2], strict=True))
    assert store.get_many([], salt=SALT) == []


def test_of_one_prefix_the_end_is_evicted_first(
    make_store: MakeStore, make_disk: MakeDisk, sample: MakeSample, clock: FakeClock
) -> None:
    samples = [sample(number, 4096) for number in range(4)]
    store = make_store(make_disk(max_bytes=4 * 8192))
    put(store, *samples)
    clock.advance(100)
    store.get_many([one.key for one in samples], salt=SALT)
    put(store, sample(9, 4096))
    assert [store.has(one.key) for one in samples] == [True, True, True, False]


def test_leading_counts_to_the_first_gap(store: Store, sample: MakeSample) -> None:
    samples = [sample(number) for number in range(5)]
    spans = [Span(one.key, one.meta.start, one.meta.stop) for one in samples]
    assert store.leading(spans) == 0
    put(store, samples[0], samples[1], samples[3])
    assert store.leading(spans) == 2
    put(store, samples[2], samples[4])
    assert store.leading(spans) == 5
    assert store.leading([]) == 0


def test_each_tier_is_asked_once_and_only_for_what_faster_ones_lack(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample(number) for number in range(4)]
    keys = [one.key for one in samples]
    ram, disk = make_ram(name="ram"), make_disk()
    store = make_store(ram, disk)
    put(store, samples[1], hot=True)
    put(store, samples[0])
    asked: list[list[BlockKey]] = []
    lengths = disk.lengths

    def noted(keys: Sequence[BlockKey]) -> list[int | None]:
        asked.append(list(keys))
        return lengths(keys)

    monkeypatch.setattr(disk, "lengths", noted)
    assert store.lengths([*keys, keys[0]]) == [12288, 12288, None, None, 12288]
    assert store.leading([Span(key, 0, 1) for key in keys]) == 2
    assert asked == [[keys[0], keys[2], keys[3]]] * 2
    assert store.has_many([keys[1]]) == [True]
    assert len(asked) == 2
    assert store.lengths([]) == []


@pytest.mark.parametrize("nbytes", [0, 1, 15, 17, 10_000, 1 << 20])
def test_a_payload_is_put_in_place(store: Store, sample: MakeSample, nbytes: int) -> None:
    one = sample(1, nbytes)
    put(store, one)
    for _ in range(2):
        memory = bytearray(nbytes)
        assert store.get_into(one.key, memoryview(memory), salt=SALT) == one.meta
        assert memory == one.payload
    assert (of(store, "disk").hits, of(store, "ram").hits) == (1, 1)


def test_many_payloads_are_put_in_place(store: Store, sample: MakeSample, root: Path) -> None:
    samples = [sample(number, 5000) for number in range(6)]
    put(store, *samples[:5])
    stored = bytearray(file_of(root, samples[2]).read_bytes())
    stored[5000] ^= 1
    file_of(root, samples[2]).write_bytes(stored)
    memory = memoryview(bytearray(6 * 5000))
    outs = [memory[5000 * n : 5000 * (n + 1)] for n in range(6)]
    found = store.get_many_into([one.key for one in samples], outs, salt=SALT)
    assert found == [one.meta if one.number not in {2, 5} else None for one in samples]
    assert all(outs[n] == samples[n].payload for n in (0, 1, 3, 4))
    assert of(store, "disk").corrupt == 1


def test_a_payload_of_another_length_is_a_miss_and_stays(store: Store, sample: MakeSample) -> None:
    one = sample(1, 5000)
    put(store, one)
    assert store.get_into(one.key, memoryview(bytearray(4999)), salt=SALT) is None
    assert (of(store, "disk").misses, of(store, "disk").corrupt) == (1, 0)
    assert holds(store.get(one.key, salt=SALT), one)


@pytest.mark.parametrize("at", [0, 50, 4085, 4096, 12000])
def test_a_flipped_byte_on_disk_is_a_miss_and_goes(
    store: Store, sample: MakeSample, root: Path, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    one = sample(1)
    put(store, one)
    stored = bytearray(file_of(root, one).read_bytes())
    stored[at] ^= 0x10
    file_of(root, one).write_bytes(stored)
    with caplog.at_level(logging.WARNING):
        assert store.get(one.key, salt=SALT) is None
    assert not file_of(root, one).exists()
    report = of(store, "disk")
    assert (report.corrupt, report.hits, report.misses) == (1, 0, 0)
    assert report.last_error
    assert one.key.hex()[:16] in caplog.text
    put(store, one)
    assert holds(store.get(one.key, salt=SALT), one)


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 8192, 12287])
def test_a_truncated_file_is_a_miss_and_goes(store: Store, sample: MakeSample, root: Path, length: int) -> None:
    one = sample(1)
    put(store, one)
    os.truncate(file_of(root, one), length)
    assert store.get_many([one.key, sample(2).key], salt=SALT) == [None, None]
    assert of(store, "disk").corrupt == 1
    assert not file_of(root, one).exists()


def test_a_good_file_under_anothers_name_is_a_miss(store: Store, sample: MakeSample, root: Path) -> None:
    one, two = sample(1), sample(2)
    put(store, one, two)
    file_of(root, one).replace(file_of(root, two))
    assert store.get(two.key, salt=SALT) is None
    assert store.get(one.key, salt=SALT) is None
    assert of(store, "disk").corrupt == 1


def test_blocks_under_another_key_file_are_misses(
    make_store: MakeStore, make_disk: MakeDisk, buffers: Buffers, sample: MakeSample
) -> None:
    one = sample(1)
    for sealer in (ChecksumSealer(buffers), AesGcmSealer(MASTER, buffers), AesGcmSealer(bytes(32), buffers)):
        store = make_store(make_disk(), sealer=sealer)
        assert store.get(one.key, salt=SALT) is None
        put(store, one)
        assert holds(store.get(one.key, salt=SALT), one)
        assert store.report().encrypted == isinstance(sealer, AesGcmSealer)


def test_a_corrupt_copy_in_ram_is_made_good_from_disk(
    make_store: MakeStore,
    make_ram: MakeTier,
    make_disk: MakeDisk,
    page: Callable[[int], memoryview],
    sample: MakeSample,
) -> None:
    one, ram = sample(1), make_ram(name="ram")
    store = make_store(ram, make_disk())
    put(store, one)
    ram.write(one.key, page(3))
    assert holds(store.get(one.key, salt=SALT), one)
    assert (of(store, "ram").corrupt, of(store, "disk").hits) == (1, 1)
    assert holds(store.get(one.key, salt=SALT), one)
    assert of(store, "ram").hits == 1


def test_a_broken_tier_is_a_miss_and_seen_in_the_report(
    make_store: MakeStore,
    make_ram: MakeTier,
    make_disk: MakeDisk,
    sample: MakeSample,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = sample(1)
    broken = BrokenTier(make_disk(), TierUnavailable("disk: cannot read a block: Input/output error"))
    store = make_store(make_ram(name="ram"), broken)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert store.get(one.key, salt=SALT) is None
        assert store.get_many([one.key, one.key], salt=SALT) == [None, None]
        assert not store.has(one.key)
        assert store.sweep(keep=set()) == 0
    report = of(store, "disk")
    assert (report.errors, report.last_error_at_s) == (7, clock())
    assert report.last_error is not None
    assert "Input/output error" in report.last_error
    assert caplog.text.count("Input/output error") == 1, "a failing disk must not flood the log"
    with pytest.raises(TierUnavailable, match="Input/output error"):
        put(store, one, hot=True)
    assert of(store, "ram").blocks == 0, "RAM must not hold what no durable tier has"
    with pytest.raises(TierUnavailable):
        store.drop([one.key])
    broken.repair()
    put(store, one)
    assert holds(store.get(one.key, salt=SALT), one)


def test_one_durable_tier_of_two_is_enough_and_the_other_catches_up(
    make_store: MakeStore, make_disk: MakeDisk, sample: MakeSample, tmp_path: Path
) -> None:
    one = sample(1)
    broken = BrokenTier(make_disk(root=tmp_path / "a", name="a"), TierFull("a: No space left on device"))
    store = make_store(broken, make_disk(root=tmp_path / "b", name="b"))
    put(store, one)
    assert (of(store, "a").errors, of(store, "b").written) == (1, 1)
    assert holds(store.get(one.key, salt=SALT), one)
    broken.repair()
    put(store, one)
    assert (of(store, "a").written, of(store, "b").written) == (1, 1)


def test_with_only_ram_a_put_goes_there(make_store: MakeStore, make_ram: MakeTier, sample: MakeSample) -> None:
    store = make_store(make_ram(max_bytes=sealed_bytes(8192), name="ram"))
    put(store, sample(1))
    assert holds(store.get(sample(1).key, salt=SALT), sample(1))
    with pytest.raises(TierFull):
        put(store, sample(2, 8193))


def test_pinned_blocks_outlive_eviction_and_expiry_until_unpinned(
    make_store: MakeStore, make_disk: MakeDisk, sample: MakeSample, clock: FakeClock
) -> None:
    a, b, c = (sample(number, 4096) for number in range(3))
    store = make_store(make_disk(max_bytes=2 * 8192), ttl_s=1000)
    put(store, a, b)
    store.pin([a.key, b.key])
    with pytest.raises(TierFull):
        put(store, c)
    clock.advance(2000)
    assert store.sweep() == 0
    store.pin([b.key])
    put(store, c)
    assert [store.has(one.key) for one in (a, b, c)] == [False, True, True]
    assert (store.report().pinned, of(store, "disk").evicted) == (1, 1)


def test_a_prefix_that_is_being_stored_does_not_push_out_its_own_beginning(
    make_store: MakeStore, make_disk: MakeDisk, sample: MakeSample, clock: FakeClock
) -> None:
    other, a, b, c = (sample(number, 4096) for number in range(4))
    store = make_store(make_disk(max_bytes=2 * 8192))
    put(store, other)
    clock.advance(1)
    with store.hold([a.key, b.key, c.key]):
        put(store, a)
        clock.advance(1)
        put(store, b)
        with store.hold([a.key]):
            store.pin([])
        with pytest.raises(TierFull):
            put(store, c)
    assert (store.has(other.key), store.has(a.key), store.has(b.key)) == (False, True, True)
    put(store, c)
    assert (store.has(a.key), store.has(b.key), store.has(c.key)) == (False, True, True)


def test_what_is_worth_more_stays_longer_in_every_tier(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample, clock: FakeClock
) -> None:
    a, b, c = (sample(number, 4096) for number in range(3))
    store = make_store(make_ram(name="ram", max_bytes=2 * 8192), make_disk(max_bytes=2 * 8192))
    store.retain({a.key: 2.0, b.key: 1.0, c.key: 3.0})
    for one in (a, b, c):
        put(store, one, hot=True)
        clock.advance(1)
    assert store.has_many([a.key, b.key, c.key]) == [True, False, True]
    assert of(store, "ram").blocks == 2


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_a_value_out_of_range_is_refused(store: Store, sample: MakeSample, value: float) -> None:
    with pytest.raises(ValueError, match="value"):
        store.retain({sample(1).key: value})


def test_two_fills_that_do_not_fit_together_do_not_push_each_other_out(
    make_store: MakeStore, make_disk: MakeDisk, sample: MakeSample, clock: FakeClock
) -> None:
    ready, other, dearer = ([sample(10 * n + k, 4096) for k in range(3)] for n in range(3))
    store = make_store(make_disk(max_bytes=4 * 8192))
    store.retain({one.key: 1.0 for one in ready})
    put(store, *ready)
    clock.advance(100)
    with store.hold([one.key for one in other], value=1.0):
        put(store, other[0])
        with pytest.raises(TierFull):
            put(store, other[1])
    assert all(store.has(one.key) for one in ready)
    with store.hold([one.key for one in dearer], value=1.5):
        put(store, *dearer)
    assert [store.has(one.key) for one in (*ready, other[0])] == [False, False, True, False]
    passing = sample(99, 4096)
    store.retain({one.key: 1.0 for one in (*ready, *dearer)})
    with pytest.raises(TierFull):
        put(store, passing)


def test_a_promotion_makes_room_among_what_is_worth_as_much(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample
) -> None:
    a, b = sample(1, 4096), sample(2, 4096)
    store = make_store(make_ram(max_bytes=8192, name="ram"), make_disk())
    store.retain({a.key: 1.0, b.key: 1.0})
    put(store, a, b)
    for one in (a, b):
        store.get(one.key, salt=SALT)
        assert holds(store.get(one.key, salt=SALT), one)
    assert of(store, "ram").hits == 2


def test_a_promotion_into_a_ram_full_of_pins_is_no_error(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample
) -> None:
    a, b = sample(1, 4096), sample(2, 4096)
    store = make_store(make_ram(max_bytes=8192, name="ram"), make_disk())
    put(store, a, b)
    store.get(a.key, salt=SALT)
    store.pin([a.key])
    assert holds(store.get(b.key, salt=SALT), b)
    put(store, b, hot=True)
    assert (of(store, "ram").errors, of(store, "ram").blocks) == (0, 1)


def test_a_drop_is_complete(store: Store, sample: MakeSample, root: Path) -> None:
    one, two, three = sample(1), sample(2), sample(3)
    put(store, one, two, hot=True)
    store.pin([one.key])
    assert store.drop([one.key, three.key]) == 1
    assert store.get(one.key, salt=SALT) is None
    assert not file_of(root, one).exists()
    assert of(store, "ram").blocks == of(store, "disk").blocks == 1


def test_what_is_deleted_while_it_is_read_does_not_come_back(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, ram, disk = sample(1), make_ram(name="ram"), make_disk()
    store = make_store(ram, disk)
    put(store, one)
    read = disk.read

    def read_then_lose(key: BlockKey) -> memoryview | None:
        found = read(key)
        dropper = threading.Thread(target=store.drop, args=([key],))
        dropper.start()
        dropper.join()
        return found

    monkeypatch.setattr(disk, "read", read_then_lose)
    assert holds(store.get(one.key, salt=SALT), one), "the reader was first, and may have it"
    assert of(store, "ram").blocks == 0
    assert not store.has(one.key)


def test_what_is_read_during_a_deletion_is_not_promoted(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, disk = sample(1), make_disk()
    store = make_store(make_ram(name="ram"), disk)
    put(store, one)
    drop, got = disk.drop, []

    def read_then_drop(key: BlockKey) -> bool:
        got.append(store.get(key, salt=SALT))
        return drop(key)

    monkeypatch.setattr(disk, "drop", read_then_drop)
    store.drop([one.key])
    assert holds(got[0], one)
    assert of(store, "ram").blocks == 0


def test_a_sweep_takes_what_nobody_used_for_its_time_to_live(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample, clock: FakeClock
) -> None:
    a, b = sample(1), sample(2)
    store = make_store(make_ram(name="ram"), make_disk(), ttl_s=1000)
    put(store, a, b, hot=True)
    clock.advance(900)
    store.get(b.key, salt=SALT)
    clock.advance(101)
    assert store.sweep() == 1
    assert [store.has(one.key) for one in (a, b)] == [False, True]
    assert (of(store, "ram").expired, of(store, "disk").expired) == (1, 1)


def test_each_tier_may_have_a_time_to_live_of_its_own(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample, clock: FakeClock, tmp_path: Path
) -> None:
    ram, short, long = make_ram(name="ram"), make_disk(name="short"), make_disk(name="long", root=tmp_path / "long")
    policies = {"ram": Policy(ttl_s=10), "short": Policy(ttl_s=100)}
    store = make_store(ram, short, long, ttl_s=1000, policies=policies)
    put(store, sample(1), hot=True)
    held = []
    for age_s in (5, 50, 500, 5000):
        clock.advance(age_s)
        store.sweep()
        held.append([tier.length(sample(1).key) is not None for tier in (ram, short, long)])
    assert held == [[True] * 3, [False, True, True], [False, False, True], [False] * 3]


def test_a_sweep_keeps_what_only_a_tier_below_has(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample, clock: FakeClock, tmp_path: Path
) -> None:
    ram, home, below = make_ram(name="ram"), make_disk(max_bytes=8192), make_disk(name="below", root=tmp_path / "b")
    store = make_store(ram, home, below, policies={"below": Policy(back=True)})
    put(store, sample(1, 4096), hot=True)
    clock.advance(1)
    put(store, sample(2, 4096))
    store.sweep()
    assert [tier.length(sample(1).key) is not None for tier in (ram, home, below)] == [True, False, True]
    assert store.drop([sample(1).key]) == 1
    assert not store.has(sample(1).key)


def test_a_store_whose_folder_is_deleted_misses_and_makes_it_again(
    make_store: MakeStore, make_disk: MakeDisk, sample: MakeSample, root: Path, sealer: Sealer
) -> None:
    samples = [sample(number) for number in range(3)]
    store = make_store(make_disk(), sealer=sealer)
    put(store, *samples)
    shutil.rmtree(root)
    assert store.leading([Span(one.key, 0, 1) for one in samples]) == 0
    assert store.get_many([one.key for one in samples], salt=SALT) == [None] * 3
    assert store.sweep(keep=set()) == store.drop([samples[0].key]) == 0
    assert store.reseal([SALT]).finished
    assert (of(store, "disk").blocks, of(store, "disk").errors) == (0, 0)
    put(store, samples[1])
    shutil.rmtree(root)
    put(store, samples[2])
    assert holds(store.get(samples[2].key, salt=SALT), samples[2])
    assert of(store, "disk").blocks == 1


def test_a_sweep_takes_what_nobody_keeps_after_a_grace(store: Store, sample: MakeSample, clock: FakeClock) -> None:
    a, b, c = (sample(number) for number in range(3))
    put(store, a, b)
    clock.advance(601)
    put(store, c)
    assert store.sweep(keep={a.key}) == 1
    assert [store.has(one.key) for one in (a, b, c)] == [True, False, True]
    assert store.sweep(keep={a.key}, grace_s=-1) == 1
    assert [store.has(one.key) for one in (a, b, c)] == [True, False, False]


def test_a_sweep_takes_copies_of_what_another_process_deleted(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample
) -> None:
    ours, theirs = make_store(make_ram(name="ram"), make_disk()), make_store(make_disk())
    put(ours, sample(1), sample(2), hot=True)
    theirs.drop([sample(1).key])
    ours.sweep()
    assert ours.get(sample(1).key, salt=SALT) is None
    assert of(ours, "ram").blocks == 1


def test_a_tier_on_a_server_is_listed_by_sweeps_no_more_often_than_told(
    make_store: MakeStore,
    make_disk: MakeDisk,
    sample: MakeSample,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remote = make_disk(name="redis")
    listed: list[float] = []
    records = remote.records

    def noted() -> tuple[Record, ...]:
        listed.append(clock.now_s)
        return records()

    monkeypatch.setattr(remote, "records", noted)
    store = make_store(remote, policies={"redis": Policy(list_every_s=600)})
    put(store, sample(1))
    for _ in range(30):
        clock.advance(60)
        store.sweep(keep={sample(1).key})
    assert len(listed) == 3
    clock.advance(700)
    assert store.sweep(keep=set()) == 1


def test_a_tier_that_could_not_be_listed_is_listed_by_the_next_sweep(
    make_store: MakeStore, make_disk: MakeDisk, sample: MakeSample
) -> None:
    disk = make_disk()
    broken = BrokenTier(disk, TierUnavailable("disk: Input/output error"))
    store = make_store(broken, policies={"disk": Policy(list_every_s=600)})
    assert store.sweep() == store.sweep() == 0
    assert of(store, "disk").errors == 2


def test_a_sweep_keeps_copies_while_the_disk_cannot_be_asked(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample
) -> None:
    broken = BrokenTier(make_disk(), TierUnavailable("disk: Input/output error"))
    ram = make_ram(name="ram")
    put(make_store(ram, make_disk()), sample(1), hot=True)
    store = make_store(ram, broken)
    assert store.sweep() == 0
    assert holds(store.get(sample(1).key, salt=SALT), sample(1))


def test_another_process_finds_what_this_one_put(
    make_store: MakeStore, make_disk: MakeDisk, sample: MakeSample
) -> None:
    ours, theirs = make_store(make_disk()), make_store(make_disk())
    put(ours, sample(1))
    assert theirs.has(sample(1).key)
    assert holds(theirs.get(sample(1).key, salt=SALT), sample(1))
    assert of(theirs, "disk").blocks == 1


def test_a_closed_store_misses_and_refuses(store: Store, sample: MakeSample) -> None:
    put(store, sample(1))
    store.close()
    store.close()
    assert store.get(sample(1).key, salt=SALT) is None
    assert store.get_many([sample(1).key] * 3, salt=SALT) == [None] * 3
    with pytest.raises(TierUnavailable, match="closed"):
        put(store, sample(2))


def test_many_threads_use_one_store(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, sample: MakeSample
) -> None:
    samples = [sample(number, 5000) for number in range(12)]
    store = make_store(make_ram(max_bytes=4 * 12288, name="ram"), make_disk(max_bytes=8 * 12288))
    wrong: list[str] = []

    def work(offset: int) -> None:
        try:
            for step in range(40):
                one = samples[(step * 5 + offset) % 12]
                put(store, one, hot=step % 2 == 0)
                others = [samples[(step + shift) % 12] for shift in range(4)]
                found = store.get_many([other.key for other in others], salt=SALT)
                for block, other in zip(found, others, strict=True):
                    if block is not None and not holds(block, other):
                        wrong.append("another's bytes")
                if step % 7 == offset:
                    store.drop([one.key])
                if step % 11 == 0:
                    store.sweep(keep={other.key for other in samples})
        except Exception as error:  # noqa: BLE001 - the test's own thread must tell the test
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    report = of(store, "disk")
    assert report.corrupt == of(store, "ram").corrupt == 0
    assert report.bytes <= report.max_bytes


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "hot", "get", "drop", "flip"]), st.integers(0, 4)),
        st.tuples(st.sampled_from(["many", "reopen", "sweep"]), st.just(0)),
    ),
    max_size=25,
)


@given(steps=STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_store_answers_as_a_dict_would(
    steps: Iterable[tuple[str, int]],
    tmp_path_factory: pytest.TempPathFactory,
    buffers: Buffers,
    sealer: Sealer,
    clock: FakeClock,
) -> None:
    root = tmp_path_factory.mktemp("kv")

    def opened() -> Store:
        tiers: list[Tier] = [
            RamTier(max_bytes=3 * 12288, clock=clock),
            DiskTier(root, max_bytes=1 << 30, buffers=buffers, clock=clock, refresh_every_s=0.0),
        ]
        return Store(tiers, sealer, ttl_s=1000, clock=clock)

    samples = [Sample(number, 1000 * number) for number in range(5)]
    store, there = opened(), set[int]()
    for step, number in steps:
        one = samples[number]
        match step:
            case "put" | "hot":
                put(store, one, hot=step == "hot")
                there.add(number)
            case "get":
                assert holds(store.get(one.key, salt=SALT), one) == (number in there)
            case "drop":
                assert store.drop([one.key]) == (number in there)
                there.discard(number)
            case "flip" if number in there:
                store.close()
                store = opened()
                file_of(root, one).write_bytes(os.urandom(sealed_bytes(one.nbytes)))
                assert store.get(one.key, salt=SALT) is None
                there.discard(number)
            case "many":
                found = store.get_many([other.key for other in samples], salt=SALT)
                assert [holds(block, other) for block, other in zip(found, samples, strict=True)] == [
                    other.number in there for other in samples
                ]
            case "reopen":
                store.close()
                store = opened()
            case "sweep":
                assert store.sweep(keep={samples[n].key for n in there}, grace_s=-1) == 0
        assert {n for n in range(5) if store.has(samples[n].key)} == there
        report = of(store, "disk")
        assert (report.blocks, report.bytes) == (len(there), sum(sealed_bytes(samples[n].nbytes) for n in there))
        assert of(store, "ram").blocks <= len(there)
    store.close()
