from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from fakes.certificate import certificate
from fakes.redis_server import RedisServer, free_port, tls_options
from nightfill.errors import BadSetting, BlockCorrupt, TierUnavailable
from nightfill.kv.resp import Address, Connection, ReplyError, parse_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nightfill.kv.buffer import Buffers

LONG_S = 20.0
SHORT_S = 0.2


def soon(seconds: float = LONG_S) -> float:
    return time.monotonic() + seconds


@contextmanager
def connected(address: Address, seconds: float = LONG_S) -> Iterator[Connection]:
    connection = Connection(address, deadline_s=soon(seconds))
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def peer(play: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A server that lets one client log in and then does what `play` says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                client.sendall(b"+PONG\r\n")
                play(client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address(host="127.0.0.1", port=listener.getsockname()[1])
        thread.join(LONG_S)
        assert not thread.is_alive()


def answers(reply: bytes) -> Callable[[socket.socket], None]:
    """Answers the first command so, and waits for the client to hang up."""

    def play(client: socket.socket) -> None:
        client.recv(1000)
        with suppress(ConnectionError):  # which it ends with something unread in it
            client.sendall(reply)
            client.recv(1000)

    return play


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://valkey", Address(host="valkey")),
        ("redis://valkey:7000/3", Address(host="valkey", port=7000, db=3)),
        ("redis://:s%40cret@valkey/", Address(host="valkey", password="s@cret")),
        ("rediss://ann:s%2Fcret@[::1]:6380", Address(host="::1", port=6380, tls=True, user="ann", password="s/cret")),
        ("unix:///run/redis.sock?db=2", Address(path="/run/redis.sock", db=2)),
        ("unix://ann:secret@/run/redis.sock", Address(path="/run/redis.sock", user="ann", password="secret")),
    ],
)
def test_a_url_says_where_and_as_whom(url: str, address: Address) -> None:
    assert parse_url(url) == address
    assert "cret" not in f"{address} {address!r}"


@pytest.mark.parametrize(
    "url",
    [
        "", "valkey:6379", "http://valkey", "redis://", "redis://valkey:port", "redis://:secret@valkey/db",
        "redis://valkey/-1", "redis://valkey/0?ssl=true", "redis://valkey#secret", "unix://", "unix:///s?db",
    ],
)  # fmt: skip
def test_another_url_is_refused_without_telling_the_password(url: str) -> None:
    with pytest.raises(BadSetting, match=r"kv\.tiers\.1\.url: expected redis://") as caught:
        parse_url(url, param="kv.tiers.1.url")
    assert caught.value.param == "kv.tiers.1.url"
    assert "secret" not in str(caught.value)


def test_replies_of_every_type_come_in_the_order_of_their_commands(redis_server: RedisServer) -> None:
    with connected(redis_server.address) as connection:
        replies = connection.call(
            [
                [b"SET", b"k", b"one\r\ntwo"],
                [b"GET", b"k"],
                [b"GET", b"nothing"],
                [b"STRLEN", b"k"],
                [b"NONSENSE"],
                [b"EVAL", b"return {1, {'a', false}, {}, -7}", b"0"],
                [b"SET", b"empty", b""],
                [b"GET", b"empty"],
            ],
            deadline_s=soon(),
        )
    error = replies.pop(4)
    assert isinstance(error, ReplyError)
    assert error.code == "ERR"
    assert replies == [b"OK", b"one\r\ntwo", None, 8, [1, [b"a", None], [], -7], b"OK", b""]


@pytest.mark.parametrize("nbytes", [1, 4095, 4096, 16383, 16384, 16385, 9 << 20])
def test_a_value_goes_from_views_to_the_buffer_of_the_caller(
    redis_server: RedisServer, buffers: Buffers, nbytes: int
) -> None:
    value = memoryview((bytes(range(251)) * (nbytes // 251 + 1))[:nbytes])
    out = buffers.take(nbytes)
    asked = []

    def into(length: int) -> memoryview:
        asked.append(length)
        return out

    with connected(redis_server.address) as connection:
        connection.call([[b"SET", b"k", value]], deadline_s=soon())
        (found,) = connection.call([[b"GET", b"k"]], deadline_s=soon(), into=into)
    assert found is out
    assert asked == [nbytes]
    assert out == value


def test_over_tcp_and_with_a_database_and_a_password(buffers: Buffers) -> None:
    server = RedisServer(tcp=True, password="s3cret")
    try:
        url = f"redis://default:s3cret@127.0.0.1:{server.port}/5"
        with connected(parse_url(url)) as connection:
            value = buffers.take(3 << 20)
            connection.call([[b"SET", b"k", value]], deadline_s=soon())
            assert connection.call([[b"STRLEN", b"k"]], deadline_s=soon()) == [3 << 20]
        assert server.call([b"GET", b"k"], [b"SELECT", b"5"], [b"STRLEN", b"k"]) == [None, b"OK", 3 << 20]
        for wrong, answer in (("redis://:other@", "WRONGPASS"), ("redis://", "NOAUTH")):
            with pytest.raises(TierUnavailable, match=answer) as caught:
                Connection(parse_url(f"{wrong}127.0.0.1:{server.port}"), deadline_s=soon())
            assert "other" not in str(caught.value)
    finally:
        server.close()


def test_a_server_that_is_not_ready_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address(host="127.0.0.1", port=listener.getsockname()[1])

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                client.sendall(b"-LOADING Redis is loading the dataset in memory\r\n")
                client.recv(1000)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(TierUnavailable, match="LOADING Redis is loading"):
            Connection(address, deadline_s=soon())
        thread.join(LONG_S)


def test_nobody_there_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TierUnavailable, match="cannot connect: Connection refused"):
        Connection(Address(host="127.0.0.1", port=port), deadline_s=soon())
    with pytest.raises(TierUnavailable, match="cannot connect: No such file"):
        Connection(Address(path="/nowhere/redis.sock"), deadline_s=soon())
    with pytest.raises(TierUnavailable, match="cannot connect: not the name of a host"):
        Connection(Address(host="x" * 64), deadline_s=soon())


@pytest.mark.parametrize(
    "reply",
    [
        b"$3\r\nabcde\r\n",  # longer than said
        b"$3\r\nabc\r\n+OK\r\n",  # and one too many
        b":1\r\n:2\r\n",
        b"$-2\r\n",
        b"$9999999999\r\n",
        b"$two\r\n",
        b"*-3\r\n",
        b"*9999999\r\n",
        b"*1\r\n" * 9,
        b"HTTP/1.1 400 Bad Request\r\n",
        b"%1\r\n",
        b"\r\n",
        b"x" * 100_000,
    ],
)
def test_a_reply_that_cannot_be_right_ends_the_connection(reply: bytes) -> None:
    with peer(answers(reply)) as address, connected(address) as connection:
        with pytest.raises(TierUnavailable):
            connection.call([[b"GET", b"k"]], deadline_s=soon())
        assert connection.closed
        assert not connection.usable()


def test_a_connection_on_which_something_lies_that_nobody_asked_for_is_not_usable() -> None:
    logged_in, sent = threading.Event(), threading.Event()

    def play(client: socket.socket) -> None:
        assert logged_in.wait(LONG_S)
        client.sendall(b"+OK\r\n")
        sent.set()
        with suppress(ConnectionError):  # the client hangs up with that unread
            client.recv(1000)

    with peer(play) as address, connected(address) as connection:
        logged_in.set()
        assert sent.wait(LONG_S)
        assert not connection.usable()


def test_a_server_that_hangs_up_within_a_value_is_gone(buffers: Buffers) -> None:
    def play(client: socket.socket) -> None:
        client.recv(1000)
        client.sendall(b"$100\r\nabc")

    with peer(play) as address, connected(address) as connection:
        with pytest.raises(TierUnavailable, match="hung up"):
            connection.call([[b"GET", b"k"]], deadline_s=soon(), into=buffers.take)
        assert connection.closed


def test_a_server_that_drips_meets_the_deadline_all_the_same(buffers: Buffers) -> None:
    stop = threading.Event()

    def play(client: socket.socket) -> None:
        client.recv(1000)
        client.sendall(b"$1000000\r\n")
        with suppress(ConnectionError):  # the client hangs up, as it should
            while not stop.wait(0.005):
                client.sendall(b"x")

    with peer(play) as address, connected(address) as connection:
        with pytest.raises(TierUnavailable, match="no answer in time"):
            connection.call([[b"GET", b"k"]], deadline_s=soon(SHORT_S), into=buffers.take)
        assert connection.closed
        stop.set()


def test_a_server_that_does_not_read_meets_the_deadline(buffers: Buffers) -> None:
    done = threading.Event()

    def play(client: socket.socket) -> None:
        assert done.wait(LONG_S)

    with peer(play) as address, connected(address) as connection:
        with pytest.raises(TierUnavailable, match="no answer in time"):
            connection.call([[b"SET", b"k", buffers.take(64 << 20)]], deadline_s=soon(SHORT_S))
        assert connection.closed
        done.set()


def test_a_sink_that_refuses_a_length_ends_the_connection(redis_server: RedisServer) -> None:
    redis_server.call([b"SET", b"k", b"x" * 100])

    def refuse(length: int) -> memoryview:
        raise BlockCorrupt(f"not {length}")

    with connected(redis_server.address) as connection:
        with pytest.raises(BlockCorrupt, match="not 100"):
            connection.call([[b"GET", b"k"]], deadline_s=soon(), into=refuse)
        assert connection.closed
        with pytest.raises(TierUnavailable):
            connection.call([[b"PING"]], deadline_s=soon())


def test_what_is_posted_is_done_and_its_replies_are_nobodys(redis_server: RedisServer) -> None:
    with connected(redis_server.address) as connection:
        for _ in range(200):
            connection.post([b"INCR", b"k"], deadline_s=soon())
        connection.post([b"NONSENSE"], deadline_s=soon())
        assert connection.usable()
        assert connection.call([[b"GET", b"k"], [b"ECHO", b"x"]], deadline_s=soon()) == [b"200", b"x"]


def test_a_connection_that_the_server_closed_is_not_usable() -> None:
    server = RedisServer()
    with connected(server.address) as connection:
        assert connection.usable()
        connection.post([b"PING"], deadline_s=soon())
        server.close()
        assert not connection.usable()


def test_tls_is_checked_against_the_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffers: Buffers
) -> None:
    cert, key = certificate(tmp_path)
    port = free_port()
    server = RedisServer(*tls_options(port, cert, key))
    try:
        address = parse_url(f"rediss://localhost:{port}/1")
        with pytest.raises(TierUnavailable, match=r"cannot connect: .*CERTIFICATE_VERIFY_FAILED"):
            Connection(address, deadline_s=soon())
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        with connected(address) as connection:
            value = buffers.take(3 << 20)
            value[:] = bytes(range(256)) * (len(value) // 256)
            connection.call([[b"SET", b"k", value]], deadline_s=soon())
            assert connection.usable()
            assert connection.call([[b"GET", b"k"]], deadline_s=soon(), into=buffers.take) == [value]
        with pytest.raises(TierUnavailable, match="cannot connect"):
            Connection(parse_url(f"rediss://127.0.0.1:{port}"), deadline_s=soon())
    finally:
        server.close()
