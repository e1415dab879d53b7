"""The contract of `Tier`, kept by every one of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from nightfill.errors import TierFull
from nightfill.kv.tier import Evictor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fakes.kv import FakeClock, MakeSample, MakeTier
    from nightfill.kv.eviction import Record
    from nightfill.kv.tier import Tier


@pytest.fixture
def tier(make_tier: MakeTier) -> Tier:
    return make_tier()


def test_what_was_written_is_read(tier: Tier, sample: MakeSample, page: Callable[[int], memoryview]) -> None:
    one, two = page(2), page(9)
    tier.write(sample(1).key, one)
    tier.write(sample(2).key, two)
    assert tier.read(sample(1).key) == one
    assert tier.read(sample(2).key) == two
    assert (tier.length(sample(1).key), tier.length(sample(2).key)) == (8192, 9 * 4096)
    usage = tier.usage()
    assert (usage.bytes, usage.blocks) == (11 * 4096, 2)


def test_lengths_come_in_the_order_asked_for(tier: Tier, sample: MakeSample, page: Callable[[int], memoryview]) -> None:
    tier.write(sample(1).key, page(2))
    tier.write(sample(3).key, page(1))
    asked = [sample(number).key for number in (3, 2, 1, 3)]
    assert tier.lengths(asked) == [4096, None, 8192, 4096]
    assert tier.lengths([]) == []


def test_what_is_read_cannot_be_changed(tier: Tier, sample: MakeSample, page: Callable[[int], memoryview]) -> None:
    tier.write(sample(1).key, page(1))
    found = tier.read(sample(1).key)
    assert found is not None
    assert found.readonly


def test_what_is_not_there_is_a_miss(tier: Tier, sample: MakeSample) -> None:
    key = sample(1).key
    tier.touch(key)
    assert (tier.read(key), tier.length(key), tier.drop(key)) == (None, None, False)
    assert tier.records() == ()


def test_a_block_takes_the_place_of_the_one_before(
    tier: Tier, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    tier.write(sample(1).key, page(9))
    new = page(2)
    tier.write(sample(1).key, new)
    assert tier.read(sample(1).key) == new
    assert (tier.usage().bytes, tier.usage().blocks) == (8192, 1)


def test_a_dropped_block_is_gone_also_when_pinned(
    tier: Tier, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    key = sample(1).key
    tier.write(key, page(1))
    tier.pin(frozenset({key}))
    assert tier.drop(key)
    assert tier.read(key) is None
    assert (tier.usage().bytes, tier.usage().blocks) == (0, 0)


def test_a_view_outlives_its_block(tier: Tier, sample: MakeSample, page: Callable[[int], memoryview]) -> None:
    data = page(2)
    copy = bytes(data)
    tier.write(sample(1).key, data)
    view = tier.read(sample(1).key)
    del data
    tier.drop(sample(1).key)
    for number in range(2, 6):
        tier.write(sample(number).key, page(2))
    assert view is not None
    assert bytes(view) == copy


def test_records_tell_size_and_last_use_oldest_first(
    tier: Tier, clock: FakeClock, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    began_s = clock()
    for number in (1, 2, 3):
        tier.write(sample(number).key, page(number))
        clock.advance(100)
    tier.touch(sample(1).key)
    assert [(r.key, r.size_bytes, round(r.used_s - began_s)) for r in tier.records()] == [
        (sample(2).key, 8192, 100),
        (sample(3).key, 12288, 200),
        (sample(1).key, 4096, 300),
    ]


def test_reading_alone_is_no_use(
    tier: Tier, clock: FakeClock, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    tier.write(sample(1).key, page(1))
    before = tier.records()
    clock.advance(1000)
    tier.read(sample(1).key)
    tier.length(sample(1).key)
    assert tier.records() == before


def test_the_block_unused_for_longest_makes_room(
    make_tier: MakeTier, clock: FakeClock, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    tier = make_tier(max_bytes=3 * 4096)
    for number in (1, 2, 3):
        tier.write(sample(number).key, page(1))
        clock.advance(100)
    tier.touch(sample(1).key)
    tier.write(sample(4).key, page(1))
    assert [tier.length(sample(number).key) is not None for number in (1, 2, 3, 4)] == [True, False, True, True]
    assert tier.usage().evicted == 1
    clock.advance(100)
    tier.write(sample(5).key, page(3))
    assert [record.key for record in tier.records()] == [sample(5).key]
    assert (tier.usage().evicted, tier.usage().bytes) == (4, 3 * 4096)


def test_pinned_blocks_stay_and_then_the_tier_is_full(
    make_tier: MakeTier, clock: FakeClock, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    tier = make_tier(max_bytes=3 * 4096)
    for number in (1, 2, 3):
        tier.write(sample(number).key, page(1))
        clock.advance(100)
    tier.pin(frozenset({sample(1).key, sample(3).key}))
    tier.write(sample(4).key, page(1))
    assert tier.length(sample(2).key) is None
    tier.pin(frozenset(sample(number).key for number in (1, 3, 4)))
    with pytest.raises(TierFull):
        tier.write(sample(5).key, page(1))
    assert {record.key for record in tier.records()} == {sample(number).key for number in (1, 3, 4)}
    tier.pin(frozenset())
    tier.write(sample(5).key, page(1))
    assert tier.length(sample(1).key) is None


def test_a_pinned_block_can_be_replaced_in_a_full_tier(
    make_tier: MakeTier, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    tier = make_tier(max_bytes=4096)
    tier.write(sample(1).key, page(1))
    tier.pin(frozenset({sample(1).key}))
    new = page(1)
    tier.write(sample(1).key, new)
    assert tier.read(sample(1).key) == new


def test_a_block_that_grows_makes_room_at_the_cost_of_others(
    make_tier: MakeTier, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    tier = make_tier(max_bytes=3 * 4096)
    tier.write(sample(1).key, page(1))
    tier.write(sample(2).key, page(2))
    tier.write(sample(1).key, page(2))
    assert [(record.key, record.size_bytes) for record in tier.records()] == [(sample(1).key, 8192)]
    assert (tier.usage().bytes, tier.usage().evicted) == (8192, 1)


def test_a_block_over_the_cap_is_refused_and_costs_nobody_his_place(
    make_tier: MakeTier, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    tier = make_tier(max_bytes=2 * 4096)
    tier.write(sample(1).key, page(2))
    with pytest.raises(TierFull):
        tier.write(sample(2).key, page(3))
    assert tier.length(sample(1).key) == 8192


def test_threads_never_see_a_mixture(
    make_tier: MakeTier, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    tier = make_tier(max_bytes=5 * 8 * 4096)
    versions = {bytes(page(8)) for _ in range(4)}
    wrong: list[str] = []

    def work(version: bytes, number: int) -> None:
        try:
            for step in range(60):
                key = sample((step + number) % 8).key
                fresh = page(8)
                fresh[:] = version
                tier.write(key, fresh)
                tier.touch(key)
                found = tier.read(sample(step % 8).key)
                if found is not None and bytes(found) not in versions:
                    wrong.append("mixture")
                if step % 10 == 9:
                    tier.drop(key)
        except Exception as error:  # noqa: BLE001 - the test's own thread must tell the test
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(version, number)) for number, version in enumerate(versions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    usage = tier.usage()
    assert usage.bytes == sum(record.size_bytes for record in tier.records()) <= 5 * 8 * 4096


@pytest.fixture(params=["ram", "disk", "redis", "s3"])
def evictor(request: pytest.FixtureRequest) -> Tier:
    """Three pages large; each kind that hands down what it lets go."""
    make: MakeTier = request.getfixturevalue(f"make_{request.param}")
    return make(max_bytes=3 * 4096, name="tier")


def test_an_evictor_lets_go_first_of_what_is_worth_least(
    evictor: Tier, clock: FakeClock, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    assert isinstance(evictor, Evictor)
    for number in (1, 2, 3):
        evictor.write(sample(number).key, page(1))
        clock.advance(100)
    evictor.retain({sample(1).key: 2.0, sample(2).key: 1.0, sample(3).key: 3.0}, guarded=False)
    evictor.write(sample(4).key, page(1))
    assert evictor.lengths([sample(n).key for n in (1, 2, 3, 4)]) == [4096, None, 4096, 4096]
    evictor.retain({sample(n).key: 1.0 for n in (1, 3, 4, 5)}, guarded=True)
    with pytest.raises(TierFull):
        evictor.write(sample(5).key, page(1))
    evictor.retain({}, guarded=True)
    evictor.write(sample(5).key, page(1))
    assert evictor.length(sample(1).key) is None


def test_an_evictor_offers_what_it_lets_go_while_it_can_be_read(
    evictor: Tier, clock: FakeClock, sample: MakeSample, page: Callable[[int], memoryview]
) -> None:
    assert isinstance(evictor, Evictor)
    offered: dict[bytes, bytes | None] = {}

    def spill(records: Sequence[Record]) -> None:
        evictor.usage()  # no lock may be held here
        for record in records:
            found = evictor.read(record.key)
            offered[record.key] = None if found is None else bytes(found)

    evictor.spill_to(spill)
    pages = {sample(number).key: page(1) for number in (1, 2, 3)}
    for key, one in pages.items():
        evictor.write(key, one)
        clock.advance(100)
    evictor.write(sample(3).key, pages[sample(3).key])
    evictor.drop(sample(3).key)
    assert offered == {}
    evictor.write(sample(4).key, page(2))
    assert offered == {sample(1).key: bytes(pages[sample(1).key])}
    assert evictor.lengths([sample(n).key for n in (1, 2, 4)]) == [None, 4096, 8192]


def test_closing_twice_is_closing(tier: Tier) -> None:
    tier.close()
    tier.close()
