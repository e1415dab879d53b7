"""What the Redis tier adds to the contract of tiers, and what it makes of a real server's faults."""

from __future__ import annotations

import mmap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from fakes.kv import SALT, FakeClock, MakeSample, MakeStore, MakeTier, Sample
from fakes.redis_server import RedisServer, free_port
from nightfill.config import ByteSize, KvSettings, TierSettings
from nightfill.errors import BadSetting, BlockCorrupt, KvError, TierFull, TierUnavailable
from nightfill.kv import open_store
from nightfill.kv.resp import Address
from nightfill.kv.tier import Evictor, HeadReader
from nightfill.kv.tiers.redis import RedisTier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from nightfill.kv.buffer import Buffers
    from nightfill.kv.eviction import Record
    from nightfill.kv.key import BlockKey
    from nightfill.kv.tier import Tier
    from nightfill.kv.tiers.redis_index import Room

    MakePages = Callable[[int], memoryview]

LONG_S = 20.0
PAGE = 4096


def value_of(one: Sample) -> bytes:
    return b"nf:{kv}:b:" + one.key.hex().encode()


def fails(call: Callable[[], object], error: type[KvError], match: str | None = None) -> None:
    with pytest.raises(error, match=match):
        call()


def agrees(tier: Tier) -> bool:
    """Whether bytes and blocks are those of the records, which come from the values themselves."""
    usage, records = tier.usage(), tier.records()
    return (usage.bytes, usage.blocks) == (sum(record.size_bytes for record in records), len(records))


@pytest.fixture
def tier(make_redis: MakeTier) -> Tier:
    return make_redis()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One of the test's own, for faults."""
    made = RedisServer(tcp=True)
    yield made
    made.close()


@pytest.fixture
def remote(server: RedisServer, buffers: Buffers, clock: FakeClock) -> Iterator[RedisTier]:
    """A tier on it."""
    made = RedisTier(server.address, max_bytes=1 << 30, timeout_s=LONG_S, buffers=buffers, clock=clock)
    yield made
    made.close()


# --- index ---


def test_two_processes_see_the_same(make_redis: MakeTier, sample: MakeSample, page: MakePages) -> None:
    one, two = make_redis(), make_redis()
    data = page(3)
    one.write(sample(1).key, data)
    assert two.read(sample(1).key) == data
    assert (two.usage().bytes, two.usage().blocks) == (3 * PAGE, 1)
    assert two.drop(sample(1).key)
    assert one.read(sample(1).key) is None


def test_the_cap_holds_for_all_processes_together(make_redis: MakeTier, sample: MakeSample, page: MakePages) -> None:
    tiers = [make_redis(max_bytes=20 * PAGE) for _ in range(4)]

    def work(number: int) -> None:
        for step in range(25):
            tiers[number].write(sample(100 * number + step).key, page(1 + step % 3))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert agrees(tiers[0])
    assert tiers[0].usage().bytes <= 20 * PAGE
    assert sum(tier.usage().evicted for tier in tiers) == 100 - tiers[0].usage().blocks


@pytest.fixture
def crowded(make_redis: MakeTier, sample: MakeSample, page: MakePages, monkeypatch: pytest.MonkeyPatch) -> RedisTier:
    """A tier of four pages; while it writes for the first time, another process takes all the room it has made."""
    tier, other = make_redis(max_bytes=4 * PAGE), make_redis(max_bytes=4 * PAGE)
    assert isinstance(tier, RedisTier)
    room, asked = tier._index.room, []

    def then_fill(key: BlockKey, nbytes: int, *, max_bytes: int, offset: int, count: int) -> Room:
        found = room(key, nbytes, max_bytes=max_bytes, offset=offset, count=count)
        asked.append(found)
        if len(asked) == 2:  # the first one had the index built
            other.write(sample(100).key, page(4))
        return found

    monkeypatch.setattr(tier._index, "room", then_fill)
    return tier


def test_room_that_somebody_else_took_is_made_again(crowded: RedisTier, sample: MakeSample, page: MakePages) -> None:
    crowded.write(sample(1).key, page(2))
    assert [record.key for record in crowded.records()] == [sample(1).key]
    assert crowded.usage().bytes == 2 * PAGE


def test_where_there_was_plenty_of_room_it_is_not_asked_for_and_the_cap_holds_all_the_same(
    make_redis: MakeTier, sample: MakeSample, page: MakePages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightfill.kv.tiers.redis.ASK_EVERY_S", 1000.0)
    tier, other = make_redis(max_bytes=64 * PAGE), make_redis(max_bytes=64 * PAGE)
    assert isinstance(tier, RedisTier)
    room, asked = tier._index.room, []

    def counted(key: BlockKey, nbytes: int, *, max_bytes: int, offset: int, count: int) -> Room:
        asked.append(key)
        return room(key, nbytes, max_bytes=max_bytes, offset=offset, count=count)

    monkeypatch.setattr(tier._index, "room", counted)
    tier.write(sample(1).key, page(1))
    tier.write(sample(2).key, page(1))
    assert set(asked) == {sample(1).key}
    other.write(sample(100).key, page(62))
    last = page(1)
    tier.write(sample(3).key, last)  # believes that there is plenty of room
    assert asked[-1] == sample(3).key
    assert tier.usage().bytes <= 64 * PAGE
    assert tier.read(sample(3).key) == last
    assert agrees(tier)


def test_a_block_for_which_no_room_is_left_does_not_stay(
    crowded: RedisTier, sample: MakeSample, page: MakePages
) -> None:
    crowded.pin(frozenset({sample(100).key}))
    fails(lambda: crowded.write(sample(1).key, page(2)), TierFull)
    assert [record.key for record in crowded.records()] == [sample(100).key]
    assert crowded.usage().bytes == 4 * PAGE


def test_a_use_is_told_to_the_server_once_a_minute(
    tier: Tier, make_redis: MakeTier, clock: FakeClock, sample: MakeSample, page: MakePages
) -> None:
    began_s = clock()
    tier.write(sample(1).key, page(1))
    ages = []
    for _ in range(4):
        clock.advance(40)
        tier.touch(sample(1).key)
        ages.append(round(tier.records()[0].used_s - began_s))
    assert ages == [0, 80, 80, 160]


def test_many_pinned_blocks_are_passed_over(
    make_redis: MakeTier, clock: FakeClock, sample: MakeSample, page: MakePages
) -> None:
    tier = make_redis(max_bytes=301 * PAGE)
    data = page(1)
    for number in range(301):
        tier.write(sample(number).key, data)
        clock.advance(1)
    tier.pin(frozenset(sample(number).key for number in range(300)))
    tier.write(sample(1000).key, data)
    assert tier.length(sample(300).key) is None
    assert tier.usage().blocks == 301


def test_what_is_worth_least_goes_first_however_new_it_is(
    make_redis: MakeTier, clock: FakeClock, sample: MakeSample, page: MakePages
) -> None:
    tier = make_redis(max_bytes=200 * PAGE)
    assert isinstance(tier, Evictor)
    data = page(1)
    for number in range(200):
        tier.write(sample(number).key, data)
        clock.advance(1)
    values = {sample(number).key: 2.0 for number in range(199)} | {sample(150).key: 1.0}
    tier.retain(values, guarded=False)
    tier.write(sample(1000).key, data)
    assert tier.length(sample(199).key) is None
    tier.retain(values | {sample(1000).key: 5.0}, guarded=False)
    tier.write(sample(1001).key, data)
    assert tier.length(sample(150).key) is None
    # Where blocks have their home, nothing goes for what is worth no more.
    tier.retain(values | {sample(1000).key: 5.0, sample(1001).key: 2.0, sample(1003).key: 3.0}, guarded=True)
    fails(lambda: tier.write(sample(1002).key, data), TierFull)
    tier.write(sample(1003).key, data)
    assert tier.length(sample(0).key) is None
    assert tier.usage().blocks == 200


def test_what_is_about_to_go_can_still_be_read(
    make_redis: MakeTier, clock: FakeClock, sample: MakeSample, page: MakePages
) -> None:
    tier = make_redis(max_bytes=3 * PAGE)
    assert isinstance(tier, Evictor)
    told: list[tuple[BlockKey, int]] = []

    def spill(records: Sequence[Record]) -> None:
        for record in records:
            found = tier.read(record.key)
            assert found is not None
            told.append((record.key, len(found)))

    tier.spill_to(spill)
    for number in (1, 2, 3):
        tier.write(sample(number).key, page(1))
        clock.advance(1)
    tier.write(sample(3).key, page(1))
    tier.drop(sample(3).key)
    assert told == []
    tier.write(sample(4).key, page(3))
    assert told == [(sample(1).key, PAGE), (sample(2).key, PAGE)]


def test_what_was_used_since_it_was_chosen_is_not_evicted(
    tier: RedisTier, clock: FakeClock, sample: MakeSample, page: MakePages
) -> None:
    for number in (1, 2):
        tier.write(sample(number).key, page(1))
    chosen = tier.records()
    clock.advance(100)
    tier.touch(sample(1).key)
    assert tier._index.evict(chosen) == 1
    assert [record.key for record in tier.records()] == [sample(1).key]
    assert agrees(tier)


def test_last_uses_are_by_the_servers_clock_and_told_in_the_hosts(
    redis_server: RedisServer, buffers: Buffers, sample: MakeSample, page: MakePages
) -> None:
    early = RedisTier(redis_server.address, max_bytes=2 * PAGE, buffers=buffers, clock=lambda: 1e6)
    late = RedisTier(redis_server.address, max_bytes=2 * PAGE, buffers=buffers, clock=lambda: 9e9)
    late.write(sample(1).key, page(1))
    early.write(sample(2).key, page(1))
    # By the hosts' clocks the first block would be the newer one by centuries.
    assert [record.key for record in late.records()] == [sample(1).key, sample(2).key]
    for tier, now_s in ((early, 1e6), (late, 9e9)):
        assert all(now_s - LONG_S < record.used_s <= now_s + 1e-3 for record in tier.records())
    early.write(sample(3).key, page(1))
    assert late.length(sample(1).key) is None
    early.close()
    late.close()


def test_a_head_is_the_beginning_of_a_block(
    tier: Tier, redis_server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    data = page(3)
    tier.write(sample(1).key, data)
    redis_server.call([b"SET", value_of(sample(2)), b"short"])
    assert isinstance(tier, HeadReader)
    assert tier.head(sample(1).key) == data[:PAGE]
    assert tier.head(sample(3).key) is None
    fails(lambda: tier.head(sample(2).key), BlockCorrupt)


# --- what others do to the server's data ---


@pytest.mark.parametrize("lost", [(b"nf:{kv}:used",), (b"nf:{kv}:sizes",), (b"nf:{kv}:used", b"nf:{kv}:sizes")])
def test_a_lost_index_is_built_again_from_the_blocks(
    make_redis: MakeTier, redis_server: RedisServer, sample: MakeSample, page: MakePages, lost: tuple[bytes, ...]
) -> None:
    tier = make_redis(max_bytes=40 * PAGE)
    for number in range(20):
        tier.write(sample(number).key, page(2))
    redis_server.call([b"DEL", *lost])
    tier.write(sample(20).key, page(3))
    assert (tier.usage().bytes, tier.usage().blocks) == (39 * PAGE, 19 - 1 + 1)
    assert agrees(tier)


def test_more_blocks_than_one_batch_are_found_again(
    make_redis: MakeTier, redis_server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    block = bytes(PAGE)
    redis_server.call(*([b"SET", value_of(sample(number)), block] for number in range(1203)))
    redis_server.call([b"SET", b"nf:{kv}:b:somebody's", b"x"], [b"SET", b"other", b"x"])
    records = make_redis().records()
    assert {record.key for record in records} == {sample(number).key for number in range(1203)}
    assert make_redis().usage().bytes == 1203 * PAGE


def test_blocks_found_again_are_as_old_as_the_server_remembers(
    redis_server: RedisServer, make_redis: MakeTier, clock: FakeClock, sample: MakeSample, page: MakePages
) -> None:
    payload = redis_server.call([b"SET", b"x", bytes(PAGE)], [b"DUMP", b"x"])[1]
    assert isinstance(payload, bytes)
    redis_server.call(
        [b"RESTORE", value_of(sample(1)), b"0", payload, b"IDLETIME", b"500"],
        [b"RESTORE", value_of(sample(2)), b"0", payload, b"IDLETIME", b"9000"],
    )
    ages = {record.key: clock() - record.used_s for record in make_redis().records()}
    assert ages == {sample(1).key: pytest.approx(500, abs=30), sample(2).key: pytest.approx(9000, abs=30)}


def test_what_a_client_left_half_done_is_not_there(
    tier: Tier, redis_server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    # The client dies after SET and before EXEC.
    redis_server.call([b"MULTI"], [b"SET", value_of(sample(1)), bytes(page(1))])
    assert tier.read(sample(1).key) is None
    assert tier.records() == ()


def test_an_orphan_is_found_counted_and_evicted_in_its_turn(
    make_redis: MakeTier, redis_server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    tier = make_redis(max_bytes=4 * PAGE)
    tier.write(sample(1).key, page(2))
    redis_server.call([b"SET", value_of(sample(2)), bytes(page(2))])
    assert tier.usage().bytes == 2 * PAGE
    assert {record.key for record in tier.records()} == {sample(1).key, sample(2).key}
    assert tier.usage().bytes == 4 * PAGE
    tier.pin(frozenset({sample(1).key}))
    tier.write(sample(3).key, page(2))
    assert tier.length(sample(2).key) is None


def test_a_use_of_an_orphan_makes_it_known(
    tier: Tier, redis_server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    redis_server.call([b"SET", value_of(sample(1)), bytes(page(2))])
    tier.touch(sample(1).key)
    assert (tier.usage().bytes, tier.usage().blocks) == (2 * PAGE, 1)


def test_what_the_server_dropped_by_itself_is_a_miss_and_no_longer_counted(
    tier: Tier, redis_server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    for number in (1, 2, 3):
        tier.write(sample(number).key, page(1))
    redis_server.call([b"DEL", value_of(sample(1)), value_of(sample(2))])
    assert tier.usage().blocks == 3
    assert tier.read(sample(1).key) is None
    assert (tier.usage().bytes, tier.usage().blocks) == (2 * PAGE, 2)
    assert [record.key for record in tier.records()] == [sample(3).key]
    assert (tier.usage().bytes, tier.usage().blocks) == (PAGE, 1)


def test_everything_is_flushed_under_a_running_store(
    make_store: MakeStore, make_ram: MakeTier, make_redis: MakeTier, redis_server: RedisServer, sample: MakeSample
) -> None:
    redis = make_redis(max_bytes=1 << 20)
    store = make_store(make_ram(max_bytes=PAGE), redis)
    for number in range(9):
        store.put(sample(number).key, [sample(number).payload], sample(number).meta, salt=SALT)
    redis_server.call([b"FLUSHALL"], [b"SCRIPT", b"FLUSH"])
    assert store.get_many([sample(number).key for number in range(9)], salt=SALT) == [None] * 9
    for number in range(4):
        store.put(sample(number).key, [sample(number).payload], sample(number).meta, salt=SALT)
    block = store.get(sample(3).key, salt=SALT)
    assert block is not None
    assert bytes(block.payload) == sample(3).payload
    assert redis.usage().blocks == 4
    assert agrees(redis)


@pytest.mark.parametrize("flush", [b"EVALSHA of all", b"EVALSHA of the one in a transaction"])
def test_a_server_that_forgot_our_script_is_given_it_again(
    tier: RedisTier, redis_server: RedisServer, sample: MakeSample, page: MakePages, flush: bytes
) -> None:
    tier.write(sample(1).key, page(1))
    if flush == b"EVALSHA of all":
        redis_server.call([b"SCRIPT", b"FLUSH"])
        tier.write(sample(2).key, page(2))
    else:
        redis_server.call([b"SCRIPT", b"FLUSH"])
        tier._index.commit(sample(2).key, page(2), max_bytes=1 << 30)
    assert (tier.usage().bytes, tier.usage().blocks) == (3 * PAGE, 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda name, whole, other: [b"SET", name, whole[:-1]],
        lambda name, whole, other: [b"SET", name, whole[:-PAGE]],
        lambda name, whole, other: [b"SET", name, whole[:PAGE]],
        lambda name, whole, other: [b"SET", name, b""],
        lambda name, whole, other: [b"SET", name, whole + bytes(PAGE)],
        lambda name, whole, other: [b"SETRANGE", name, b"5000", b"!"],
        lambda name, whole, other: [b"COPY", other, name, b"REPLACE"],
        lambda name, whole, other: [b"LPUSH", name, b"another type"],
    ],
    ids=["shorter by a byte", "by a page", "header only", "empty", "longer", "flipped", "another's", "a list"],
)
def test_what_was_changed_behind_our_back_is_a_miss_and_goes(
    make_store: MakeStore,
    make_redis: MakeTier,
    redis_server: RedisServer,
    sample: MakeSample,
    change: Callable[[bytes, bytes, bytes], list[bytes]],
) -> None:
    redis = make_redis()
    store = make_store(redis)
    for number in (1, 2):
        store.put(sample(number).key, [sample(number).payload], sample(number).meta, salt=SALT)
    name = value_of(sample(1))
    (whole,) = redis_server.call([b"GET", name])
    assert isinstance(whole, bytes)
    command = change(name, whole, value_of(sample(2)))
    redis_server.call(*([[b"DEL", name]] if command[0] == b"LPUSH" else []), command)
    assert store.get(sample(1).key, salt=SALT) is None
    assert store.report().tiers[0].corrupt == 1
    # Another look, and nothing of it is left; what is put anew is whole.
    assert redis.length(sample(1).key) is None
    store.put(sample(1).key, [sample(1).payload], sample(1).meta, salt=SALT)
    for number in (1, 2):
        block = store.get(sample(number).key, salt=SALT)
        assert block is not None
        assert bytes(block.payload) == sample(number).payload
    assert agrees(redis)


def test_two_processes_write_the_same_block_at_once(make_redis: MakeTier, sample: MakeSample, page: MakePages) -> None:
    tiers = [make_redis() for _ in range(3)]
    versions = [page(40), page(50), page(60)]
    begin = threading.Barrier(3)

    def work(number: int) -> bool:
        for _ in range(20):
            begin.wait(LONG_S)
            tiers[number].write(sample(1).key, versions[number])
            if tiers[number].read(sample(1).key) not in versions:
                begin.abort()
                return False
        return True

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(work, range(3)))
    assert agrees(tiers[0])
    assert tiers[0].usage().blocks == 1


# --- faults of the server ---


def test_a_server_killed_under_load_and_back_on_its_port(
    remote: RedisTier, server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    data = page(1024)
    busy, stop = threading.Barrier(3), threading.Event()
    failures: list[KvError] = []

    def work(number: int) -> int:
        """How many writes succeeded after the first failure."""
        after = 0
        started = False
        while not stop.is_set():
            try:
                remote.write(sample(number).key, data)
                found = remote.read(sample(number).key)
                assert found is None or found == data
                after += bool(failures)
            except TierUnavailable as error:
                failures.append(error)
                remote.wait_until_up(0.01)
            if not started:
                busy.wait(LONG_S)
                started = True
        return after

    with ThreadPoolExecutor(2) as threads:
        workers = [threads.submit(work, number) for number in range(2)]
        busy.wait(LONG_S)
        try:
            server.kill()
            for _ in range(100):
                fails(lambda: remote.length(sample(1).key), TierUnavailable)
            server.start()
            assert remote.wait_until_up(LONG_S)
            remote.write(sample(9).key, data)
            assert remote.read(sample(9).key) == data
        finally:
            stop.set()
        assert failures
        assert all(worker.result(LONG_S) >= 0 for worker in workers)
    assert agrees(remote)


def test_while_the_server_is_gone_a_tier_reports_what_it_knew(
    remote: RedisTier, server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    remote.write(sample(1).key, page(2))
    before = remote.usage()
    server.kill()
    remote.touch(sample(1).key)
    assert remote.usage() == before
    assert (before.bytes, before.blocks) == (2 * PAGE, 1)


def test_a_server_that_stops_answering_is_a_miss_for_the_store(
    server: RedisServer,
    buffers: Buffers,
    clock: FakeClock,
    make_store: MakeStore,
    make_ram: MakeTier,
    sample: MakeSample,
) -> None:
    remote = RedisTier(server.address, max_bytes=1 << 30, timeout_s=0.3, buffers=buffers, clock=clock)
    store = make_store(make_ram(max_bytes=PAGE), remote)
    one = sample(1)
    store.put(one.key, [one.payload], one.meta, salt=SALT)
    server.pause()
    try:
        assert store.get(one.key, salt=SALT) is None
        assert store.get_many([one.key] * 50, salt=SALT) == [None] * 50
        fails(lambda: store.put(sample(2).key, [b"x"], sample(2).meta, salt=SALT), TierUnavailable, "no answer in time")
    finally:
        server.resume()
    assert remote.wait_until_up(LONG_S)
    assert store.get(one.key, salt=SALT) is not None


def test_a_tier_comes_up_without_its_server(buffers: Buffers, clock: FakeClock, sample: MakeSample) -> None:
    tier = RedisTier(Address(path="/nowhere/redis.sock"), max_bytes=1 << 20, buffers=buffers, clock=clock)
    fails(lambda: tier.read(sample(1).key), TierUnavailable, "redis: /nowhere/redis.sock/0: cannot connect")
    fails(tier.records, TierUnavailable)
    fails(lambda: tier.drop(sample(1).key), TierUnavailable)
    assert tier.usage().blocks == 0
    tier.close()


def test_a_replica_that_may_not_be_written_to_is_unavailable(
    remote: RedisTier, server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    remote.write(sample(1).key, page(1))
    server.call([b"REPLICAOF", b"127.0.0.1", b"1"])
    fails(lambda: remote.write(sample(2).key, page(1)), TierUnavailable, "READONLY")
    fails(lambda: remote.drop(sample(1).key), TierUnavailable, "READONLY")
    assert remote.read(sample(1).key) is not None
    server.call([b"REPLICAOF", b"NO", b"ONE"])
    remote.write(sample(2).key, page(1))
    assert agrees(remote)


def test_a_server_at_its_maxmemory_is_a_full_tier(
    remote: RedisTier, server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    remote.write(sample(1).key, page(2))
    server.call([b"CONFIG", b"SET", b"maxmemory", b"1mb"])
    fails(lambda: remote.write(sample(2).key, page(8)), TierFull, "maxmemory")
    assert remote.length(sample(2).key) is None
    server.call([b"CONFIG", b"SET", b"maxmemory", b"0"])
    remote.write(sample(2).key, page(8))
    assert agrees(remote)


def test_a_server_that_evicts_by_itself_costs_misses_and_no_harm(
    remote: RedisTier, server: RedisServer, sample: MakeSample, page: MakePages
) -> None:
    server.call([b"CONFIG", b"SET", b"maxmemory", b"12mb"], [b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-random"])
    data = page(256)
    for number in range(60):
        remote.write(sample(number).key, data)
    found = [remote.read(sample(number).key) for number in range(60)]
    assert 0 < sum(block is not None for block in found) < 60
    assert all(block is None or block == data for block in found)
    server.call([b"CONFIG", b"SET", b"maxmemory", b"0"])
    assert len(remote.records()) == sum(block is not None for block in found)
    assert agrees(remote)


def test_a_node_of_a_cluster_will_do(buffers: Buffers, clock: FakeClock, sample: MakeSample, page: MakePages) -> None:
    server = RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port()), tcp=True)
    tier = RedisTier(server.address, max_bytes=8 * PAGE, buffers=buffers, clock=clock)
    try:
        fails(lambda: tier.write(sample(1).key, page(1)), TierUnavailable, "CLUSTERDOWN")
        server.call([b"CLUSTER", b"ADDSLOTSRANGE", b"0", b"16383"])
        while "cluster_state:ok" not in repr(server.call([b"CLUSTER", b"INFO"])):
            time.sleep(0.02)
        for number in range(6):
            tier.write(sample(number).key, page(2))
        assert [tier.length(sample(number).key) for number in (1, 2)] == [None, 2 * PAGE]
        assert agrees(tier)
    finally:
        tier.close()
        server.close()


def test_a_block_over_the_limit_of_a_server_is_refused(remote: RedisTier, sample: MakeSample) -> None:
    remote._max_bytes = 1 << 40
    with mmap.mmap(-1, (512 << 20) + PAGE) as untouched, memoryview(untouched) as view:
        fails(lambda: remote.write(sample(1).key, view), TierFull, "536870912 bytes that a server takes")


# --- settings ---


def settings(url: str) -> KvSettings:
    return KvSettings(tiers=(TierSettings(kind="redis", max_bytes=ByteSize(1 << 20), url=url),))


def test_a_store_is_opened_on_the_url_of_its_settings(
    redis_server: RedisServer, tmp_path: Path, sample: MakeSample
) -> None:
    one = sample(1)
    for written in (True, False):
        store = open_store(settings(redis_server.url), data_dir=tmp_path)
        try:
            if written:
                store.put(one.key, [one.payload], one.meta, salt=SALT)
            block = store.get(one.key, salt=SALT)
            assert block is not None
            assert bytes(block.payload) == one.payload
            assert [(t.name, t.kind, t.durable, t.blocks) for t in store.report().tiers] == [
                ("redis", "redis", True, 1)
            ]
        finally:
            store.close()
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_url_is_a_bad_setting(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"kv\.tiers\.0\.url: expected") as caught:
        open_store(settings("redis://:secret@host/first"), data_dir=tmp_path)
    assert "secret" not in str(caught.value)


def test_a_cap_per_tenant_is_refused_rather_than_forgotten(tmp_path: Path, redis_server: RedisServer) -> None:
    wanted = structs.replace(settings(redis_server.url).tiers[0], tenant_max_bytes=ByteSize(1))
    with pytest.raises(BadSetting, match="keeps no cap per tenant") as caught:
        open_store(KvSettings(tiers=(wanted,)), data_dir=tmp_path)
    assert caught.value.param == "kv.tiers.0.tenant_max_bytes"
