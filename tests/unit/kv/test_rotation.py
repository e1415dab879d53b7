from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.kv import MASTER, SALT, Sample
from nightfill.errors import TierUnavailable
from nightfill.kv.cipher import AesGcmSealer
from nightfill.kv.rotation import Resealed
from nightfill.kv.seal import ChecksumSealer

if TYPE_CHECKING:
    from fakes.kv import MakeDisk, MakeSample, MakeStore, MakeTier
    from nightfill.kv.buffer import Buffers
    from nightfill.kv.report import TierReport
    from nightfill.kv.store import Store

NEW = bytes(reversed(MASTER))


def put(store: Store, *samples: Sample, salt: bytes = SALT) -> None:
    for one in samples:
        store.put(one.key, [one.payload], one.meta, salt=salt)


def good(store: Store, one: Sample, salt: bytes = SALT) -> bool:
    block = store.get(one.key, salt=salt)
    return block is not None and bytes(block.payload) == one.payload


def of(store: Store, name: str = "disk") -> TierReport:
    return next(tier for tier in store.report().tiers if tier.name == name)


@pytest.fixture
def before(make_store: MakeStore, make_disk: MakeDisk, buffers: Buffers) -> Store:
    """The store before its key was replaced."""
    return make_store(make_disk(), sealer=AesGcmSealer(MASTER, buffers))


@pytest.fixture
def rotated(buffers: Buffers) -> AesGcmSealer:
    return AesGcmSealer(NEW, buffers, old=[MASTER])


@pytest.fixture
def retired(buffers: Buffers) -> AesGcmSealer:
    return AesGcmSealer(NEW, buffers)


def test_what_is_used_is_sealed_anew_where_it_came_from_and_where_it_went(
    before: Store,
    make_store: MakeStore,
    make_ram: MakeTier,
    make_disk: MakeDisk,
    rotated: AesGcmSealer,
    retired: AesGcmSealer,
    sample: MakeSample,
) -> None:
    put(before, sample(1))
    ram = make_ram(name="ram")
    store = make_store(ram, make_disk(), sealer=rotated)
    assert good(store, sample(1))
    store.close()
    assert (of(store, "disk").resealed, of(store, "ram").resealed) == (1, 1)
    assert (of(store, "disk").old_keys, of(store, "ram").old_keys) == (0, 0)
    assert good(make_store(make_disk(), sealer=retired), sample(1))


def test_what_is_deleted_after_its_use_is_not_brought_back(
    before: Store,
    make_store: MakeStore,
    make_disk: MakeDisk,
    rotated: AesGcmSealer,
    sample: MakeSample,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(before, sample(1))
    store, seal = make_store(make_disk(), sealer=rotated), rotated.seal

    def delete_first(*args: object, **named: object) -> memoryview:
        store.drop([sample(1).key])
        return seal(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(rotated, "seal", delete_first)
    assert good(store, sample(1))
    store.close()
    assert not before.has(sample(1).key)


def test_a_block_under_a_key_we_lack_is_a_miss_stays_and_is_counted_apart(
    before: Store,
    make_store: MakeStore,
    make_disk: MakeDisk,
    retired: AesGcmSealer,
    buffers: Buffers,
    sample: MakeSample,
) -> None:
    put(before, sample(1))
    for sealer in (retired, ChecksumSealer(buffers)):
        store = make_store(make_disk(), sealer=sealer)
        assert store.has(sample(1).key), "nobody has looked inside yet"
        assert not good(store, sample(1))
        assert (of(store).unknown_key, of(store).corrupt, of(store).misses, of(store).hits) == (1, 0, 0, 0)
        assert "key" in (of(store).last_error or "") or "AES_GCM" in (of(store).last_error or "")
        assert not store.has(sample(1).key), "what cannot be read must not be promised"
    assert good(before, sample(1)), "the right key file opens it still"


def test_a_block_under_a_key_we_lack_is_replaced_once_it_is_computed_again(
    before: Store, make_store: MakeStore, make_disk: MakeDisk, retired: AesGcmSealer, sample: MakeSample
) -> None:
    put(before, sample(1))
    store = make_store(make_disk(), sealer=retired)
    assert not good(store, sample(1))
    put(store, sample(1))
    assert store.has(sample(1).key)
    assert good(store, sample(1))


def test_a_sweep_seals_all_anew_in_bounded_steps_until_the_old_key_can_go(
    before: Store,
    make_store: MakeStore,
    make_disk: MakeDisk,
    rotated: AesGcmSealer,
    retired: AesGcmSealer,
    sample: MakeSample,
) -> None:
    ours, theirs = [sample(n) for n in range(5)], [sample(n) for n in range(5, 8)]
    put(before, *ours)
    put(before, *theirs, salt=b"theirs")
    store = make_store(make_disk(), sealer=rotated)
    steps: list[Resealed] = []
    while not steps or not steps[-1].finished:
        steps.append(store.reseal([SALT, b"theirs"], limit=3))
    assert [step.blocks for step in steps] == [3, 3, 2]
    assert (steps[-1].left, of(store).old_keys, of(store).resealed) == (0, 0, 8)
    assert store.reseal([SALT, b"theirs"]) == Resealed(blocks=0, left=0, unknown=0, finished=True)
    after = make_store(make_disk(), sealer=retired)
    assert all(good(after, one) for one in ours)
    assert all(good(after, one, salt=b"theirs") for one in theirs)


def test_what_a_sweep_cannot_seal_anew_it_tells(
    before: Store,
    make_store: MakeStore,
    make_disk: MakeDisk,
    rotated: AesGcmSealer,
    buffers: Buffers,
    sample: MakeSample,
) -> None:
    put(before, sample(1), sample(2))
    put(before, sample(3), salt=b"a tenant who is gone")
    put(make_store(make_disk(), sealer=AesGcmSealer(bytes(32), buffers)), sample(4))
    store = make_store(make_disk(), sealer=rotated)
    assert store.reseal([SALT]) == Resealed(blocks=2, left=1, unknown=1, finished=True)
    assert of(store).old_keys == 1
    assert make_store(make_disk(), sealer=rotated).get(sample(3).key, salt=b"a tenant who is gone") is not None


def test_a_tier_that_cannot_be_asked_keeps_the_old_key_needed(
    make_store: MakeStore, make_disk: MakeDisk, rotated: AesGcmSealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk()

    def fail() -> None:
        raise TierUnavailable("disk: gone")

    monkeypatch.setattr(disk, "records", fail)
    assert make_store(disk, sealer=rotated).reseal([SALT]) == Resealed(blocks=0, left=1, unknown=0, finished=True)


def test_without_encryption_there_is_nothing_to_seal_anew(make_store: MakeStore, make_disk: MakeDisk) -> None:
    assert make_store(make_disk()).reseal([SALT]).finished


def test_reads_in_place_seal_anew_too(
    before: Store,
    make_store: MakeStore,
    make_disk: MakeDisk,
    rotated: AesGcmSealer,
    retired: AesGcmSealer,
    sample: MakeSample,
) -> None:
    put(before, sample(1))
    store = make_store(make_disk(), sealer=rotated)
    out = bytearray(sample(1).nbytes)
    assert store.get_into(sample(1).key, memoryview(out), salt=SALT) == sample(1).meta
    out[:] = bytes(len(out))
    store.close()
    assert good(make_store(make_disk(), sealer=retired), sample(1))
