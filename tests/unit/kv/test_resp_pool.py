from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fakes.redis_server import RedisServer
from nightfill.errors import BlockCorrupt, TierUnavailable
from nightfill.kv.resp import Address, ReplyError
from nightfill.kv.resp_pool import Pool, pause_s

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG_S = 20.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One of the test's own."""
    made = RedisServer(tcp=True)
    yield made
    made.close()


@pytest.fixture
def pool(server: RedisServer) -> Iterator[Pool]:
    made = Pool(server.address, name="redis", connections=3, timeout_s=LONG_S)
    yield made
    made.close()


def clients(server: RedisServer) -> int:
    """Connections that the server has, but for the one that asks."""
    (listing,) = server.call([b"CLIENT", b"LIST", b"TYPE", b"normal"])
    assert isinstance(listing, bytes)
    return listing.count(b"\n") - 1


def test_pauses_grow_from_none_to_a_few_seconds() -> None:
    assert [pause_s(failures) for failures in (0, 1, 2, 3, 7, 8, 1000)] == [0, 0.05, 0.1, 0.2, 3.2, 5, 5]


def test_many_threads_share_a_few_connections(pool: Pool, server: RedisServer) -> None:
    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(lambda n: pool.call([b"ECHO", b"%d" % n], [b"INCR", b"k"])[0], range(600)))
    assert replies == [b"%d" % n for n in range(600)]
    assert server.call([b"GET", b"k"]) == [b"600"]
    assert clients(server) <= 3


def test_a_caller_who_finds_all_connections_busy_does_not_wait_forever(server: RedisServer) -> None:
    pool = Pool(server.address, name="redis", connections=1, timeout_s=LONG_S)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(pool.call, [b"BLPOP", b"list", b"0"])
        while not clients(server):
            time.sleep(0.001)
        pool.timeout_s = 0.01
        with pytest.raises(TierUnavailable, match="all 1 connections stayed in use"):
            pool.call([b"PING"])
        server.call([b"LPUSH", b"list", b"x"])
        assert waiting.result(LONG_S) == [[b"list", b"x"]]
    # That is no sign of trouble with the server.
    pool.timeout_s = LONG_S
    assert pool.call([b"PING"]) == [b"PONG"]
    pool.close()


def test_what_the_server_refuses_is_a_reply(pool: Pool, server: RedisServer) -> None:
    (reply,) = pool.call([b"NONSENSE"])
    assert isinstance(reply, ReplyError)
    assert pool.call([b"PING"]) == [b"PONG"]


def test_a_refused_value_costs_a_connection_and_nothing_else(pool: Pool, server: RedisServer) -> None:
    server.call([b"SET", b"k", b"value"])

    def refuse(length: int) -> memoryview:
        raise BlockCorrupt("no")

    with pytest.raises(BlockCorrupt):
        pool.call([b"GET", b"k"], into=refuse)
    assert pool.call([b"GET", b"k"]) == [b"value"]


def test_a_restart_between_two_calls_goes_unnoticed(pool: Pool, server: RedisServer) -> None:
    pool.call([b"PING"])
    pool.post([b"PING"])
    server.kill()
    server.start()
    assert pool.call([b"PING"]) == [b"PONG"]


def test_a_server_that_is_gone_fails_each_call_and_comes_back_by_itself(pool: Pool, server: RedisServer) -> None:
    pool.call([b"PING"])
    server.kill()
    for _ in range(100):
        with pytest.raises(TierUnavailable, match=r"redis: 127\.0\.0\.1"):
            pool.call([b"PING"])
        with pytest.raises(TierUnavailable):
            pool.post([b"PING"])
    assert not pool.wait_until_up(0)
    server.start()
    assert pool.wait_until_up(LONG_S)
    assert pool.call([b"PING"]) == [b"PONG"]


def test_a_server_that_hangs_costs_one_timeout_and_then_each_call_fails_at_once(server: RedisServer) -> None:
    pool = Pool(server.address, name="redis", connections=2, timeout_s=0.5)
    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda _: pool.call([b"BLPOP", b"list", b"0.1"]), range(2)))
        assert len(pool._idle) == 2
        server.pause()
        with pytest.raises(TierUnavailable, match="no answer in time"):
            pool.call([b"PING"])
        began_s = time.monotonic()
        for _ in range(100):
            with pytest.raises(TierUnavailable):
                pool.call([b"PING"])
        assert time.monotonic() - began_s < 100 * 0.5 / 5
        assert not pool._idle
        server.resume()
        assert pool.wait_until_up(LONG_S)
        assert pool.call([b"PING"]) == [b"PONG"]
    finally:
        server.resume()
        pool.close()


def test_those_who_wait_for_a_connection_do_not_outwait_a_dead_server(server: RedisServer) -> None:
    pool = Pool(server.address, name="redis", connections=1, timeout_s=LONG_S)
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(pool.call, [b"BLPOP", b"list", b"0"]) for _ in range(8)]
        while not clients(server):
            time.sleep(0.001)
        server.kill()
        errors = [call.exception(LONG_S) for call in calls]
    assert all(isinstance(error, TierUnavailable) for error in errors)
    pool.close()


def test_a_wrong_password_is_said_in_each_call_but_asked_once(server: RedisServer) -> None:
    server.call([b"CONFIG", b"SET", b"requirepass", b"right"])
    address = Address(host="127.0.0.1", port=server.port, password="wrong")
    server.password = "right"
    pool = Pool(address, name="redis", connections=2, timeout_s=LONG_S)
    for _ in range(50):
        with pytest.raises(TierUnavailable, match="WRONGPASS"):
            pool.call([b"PING"])
    server.call([b"CONFIG", b"SET", b"requirepass", b"wrong"])
    server.password = "wrong"
    assert pool.wait_until_up(LONG_S)
    assert pool.call([b"PING"]) == [b"PONG"]
    pool.close()


def test_a_closed_pool_has_no_connection_and_no_thread(pool: Pool, server: RedisServer) -> None:
    pool.call([b"PING"])
    server.kill()
    with pytest.raises(TierUnavailable):
        pool.call([b"PING"])
    pool.close()
    pool.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "redis-probe"]
    server.start()
    with pytest.raises(TierUnavailable, match="closed"):
        pool.call([b"PING"])
    assert clients(server) == 0
