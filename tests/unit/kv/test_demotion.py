from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from fakes.kv import SALT, FakeClock, Sample
from nightfill.errors import TierFull, TierUnavailable
from nightfill.kv.deletion import Deletions
from nightfill.kv.demotion import Demotion
from nightfill.kv.roles import Policy, Roles
from nightfill.kv.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fakes.kv import MakeDisk, MakeSample, MakeStore, MakeTier
    from nightfill.kv.key import BlockKey
    from nightfill.kv.report import TierReport
    from nightfill.kv.store import Store
    from nightfill.kv.tier import Tier

BACK = Policy(back=True)
BLOCK = 8192
"""Stored length of the samples here."""


def put(store: Store, *samples: Sample, hot: bool = False) -> None:
    for one in samples:
        store.put(one.key, [one.payload], one.meta, salt=SALT, hot=hot)


def of(store: Store, name: str) -> TierReport:
    return next(tier for tier in store.report().tiers if tier.name == name)


def there(tier: Tier, samples: list[Sample]) -> list[int]:
    return [one.number for one in samples if tier.length(one.key) is not None]


@pytest.fixture
def samples(sample: MakeSample) -> list[Sample]:
    return [sample(number, 4096) for number in range(6)]


@pytest.fixture
def above(make_disk: MakeDisk, tmp_path_factory: pytest.TempPathFactory) -> Tier:
    return make_disk(root=tmp_path_factory.mktemp("above"), name="above", max_bytes=2 * BLOCK)


@pytest.fixture
def below(make_disk: MakeDisk, tmp_path_factory: pytest.TempPathFactory) -> Tier:
    return make_disk(root=tmp_path_factory.mktemp("below"), name="below", max_bytes=3 * BLOCK)


@pytest.fixture
def store(make_store: MakeStore, above: Tier, below: Tier) -> Store:
    return make_store(above, below, policies={"below": BACK})


def test_what_makes_room_above_is_written_below_first(
    store: Store, above: Tier, below: Tier, samples: list[Sample], clock: FakeClock
) -> None:
    for one in samples[:4]:
        put(store, one)
        clock.advance(1)
    assert (there(above, samples), there(below, samples)) == ([2, 3], [0, 1])
    assert (of(store, "below").demoted, of(store, "below").written, of(store, "above").undemoted) == (2, 2, 0)
    block = store.get(samples[0].key, salt=SALT)
    assert block is not None
    assert bytes(block.payload) == samples[0].payload


def test_a_full_ram_demotes_to_disk(
    make_store: MakeStore, make_ram: MakeTier, below: Tier, samples: list[Sample], clock: FakeClock
) -> None:
    store = make_store(make_ram(max_bytes=2 * BLOCK, name="ram"), below, policies={"below": BACK})
    for one in samples[:5]:
        put(store, one)
        clock.advance(1)
    assert there(below, samples) == [0, 1, 2]
    assert all(store.has_many([one.key for one in samples[:5]]))


def test_what_is_below_already_is_not_written_again(
    store: Store, below: Tier, samples: list[Sample], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in samples[:3]:
        put(store, one)
        clock.advance(1)
    store.get(samples[0].key, salt=SALT)
    assert there(below, samples) == [0, 1]
    monkeypatch.setattr(below, "write", None)
    store.pin([samples[2].key])
    put(store, samples[3])
    assert (there(below, samples), of(store, "above").undemoted) == ([0, 1], 0)
    assert store.has(samples[0].key)


def test_a_copy_in_a_cache_is_not_demoted_while_its_home_has_it(
    make_store: MakeStore, make_ram: MakeTier, make_disk: MakeDisk, below: Tier, samples: list[Sample]
) -> None:
    store = make_store(make_ram(max_bytes=BLOCK, name="ram"), make_disk(), below, policies={"below": BACK})
    put(store, *samples, hot=True)
    assert there(below, samples) == []
    assert of(store, "ram").undemoted == 0


def test_demotion_goes_down_tier_by_tier(
    make_store: MakeStore,
    make_disk: MakeDisk,
    tmp_path_factory: pytest.TempPathFactory,
    samples: list[Sample],
    clock: FakeClock,
) -> None:
    tiers = [
        make_disk(root=tmp_path_factory.mktemp(name), name=name, max_bytes=n * BLOCK)
        for name, n in [("a", 1), ("b", 1), ("c", 4)]
    ]
    store = make_store(*tiers, policies={"b": BACK, "c": BACK})
    for one in samples[:5]:
        put(store, one)
        clock.advance(1)
    assert [there(tier, samples) for tier in tiers] == [[4], [3], [0, 1, 2]]


def test_what_is_expired_or_dropped_is_not_demoted(
    make_store: MakeStore, above: Tier, below: Tier, samples: list[Sample], clock: FakeClock
) -> None:
    store = make_store(above, below, policies={"below": BACK}, ttl_s=100)
    put(store, samples[0], samples[1])
    clock.advance(101)
    store.drop([samples[1].key])
    put(store, samples[2], samples[3])
    assert there(below, samples) == []
    assert of(store, "above").undemoted == 0


def test_what_is_deleted_while_it_is_demoted_does_not_stay_below(
    store: Store, below: Tier, samples: list[Sample], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, samples[0])
    clock.advance(1)
    put(store, samples[1])
    write = below.write

    def write_then_delete(key: BlockKey, sealed: memoryview) -> None:
        write(key, sealed)
        dropper = threading.Thread(target=store.drop, args=([key],))
        dropper.start()
        dropper.join()
        write(key, sealed)

    monkeypatch.setattr(below, "write", write_then_delete)
    put(store, samples[2])
    assert not store.has(samples[0].key)


def test_a_tier_below_that_fails_costs_a_count_and_then_a_rest(
    store: Store, below: Tier, samples: list[Sample], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fail(*_: object) -> None:
        asked.append(1)
        raise TierUnavailable("below: gone")

    monkeypatch.setattr(below, "write", fail)
    for one in samples[:4]:
        put(store, one)
        clock.advance(1)
    assert store.has_many([one.key for one in samples[:4]]) == [False, False, True, True]
    assert (of(store, "above").undemoted, of(store, "below").errors, len(asked)) == (2, 1, 1)


def test_a_tier_below_that_is_full_costs_a_count(
    store: Store, below: Tier, samples: list[Sample], clock: FakeClock
) -> None:
    for one in samples[:5]:
        put(store, one)
        clock.advance(1)
    store.pin([one.key for one in samples[:3]])
    put(store, samples[5])
    assert there(below, samples) == [0, 1, 2]
    assert of(store, "above").undemoted == 1
    assert store.has(samples[5].key)


def waiting_below(
    below: Tier, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Event, Callable[[BlockKey, memoryview], None]]:
    go, write = threading.Event(), below.write

    def hang(key: BlockKey, sealed: memoryview) -> None:
        assert go.wait(30)
        write(key, sealed)

    monkeypatch.setattr(below, "write", hang)
    return go, hang


def test_a_tier_below_that_hangs_holds_up_one_write_and_no_lock(
    above: Tier,
    below: Tier,
    samples: list[Sample],
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    make_store: MakeStore,
) -> None:
    roles = Roles([above, below], ttl_s=1000, policies={"below": BACK})
    tally = Tally([above, below], clock=clock)
    go, _ = waiting_below(below, monkeypatch)
    filler = make_store(above)
    put(filler, samples[0], samples[1])
    demotion = Demotion(roles, tally, Deletions(), clock=clock, wait_s=0.05, rest_s=1000)
    try:
        put(filler, samples[2])
        put(filler, samples[3])
        assert there(above, samples) == [2, 3]
        assert tally.report(above, old_keys=0).undemoted == 1, "the second was not even tried"
    finally:
        go.set()
        demotion.close()
    assert there(below, samples) == [0], "the first was read before it went"


def test_writers_that_demote_the_same_blocks_all_find_room(
    make_store: MakeStore, make_disk: MakeDisk, below: Tier, sample: MakeSample, tmp_path: Path
) -> None:
    above = make_disk(root=tmp_path, name="above", max_bytes=6 * BLOCK)
    store = make_store(above, below, policies={"below": BACK})
    wrong: list[BaseException] = []

    def work(first: int) -> None:
        try:
            put(store, *(sample(number, 4096) for number in range(first, first + 20)))
        except TierFull as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert above.usage().bytes <= 6 * BLOCK
    assert of(store, "below").bytes == 3 * BLOCK
    assert of(store, "below").demoted >= 74 - of(store, "above").undemoted
