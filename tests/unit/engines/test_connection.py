"""Answers cut anywhere, and answers that are none, against the connection alone: its transport is a fake."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nightfill.engines.connection import MAX_HEAD_BYTES, Connection
from nightfill.errors import EngineError, EngineUnavailable

if TYPE_CHECKING:
    from nightfill.engines.connection import Answer


class Wire:
    """The transport that a connection sees: notes what it is told, and ends the connection as a loop would."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.writes = 0
        self.reading = True
        self.closing = False

    def write(self, data: bytes) -> None:
        self.sent += data
        self.writes += 1

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.write(b"".join(pieces))

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return 0


def connected() -> tuple[Connection, Wire]:
    connection, wire = Connection(engine="e1", on_lost=lambda _: None), Wire()
    connection.connection_made(cast("asyncio.Transport", wire))
    return connection, wire


def ask(connection: Connection, *, no_body: bool = False) -> Answer:
    return connection.ask(b"GET / HTTP/1.1\r\n\r\n", b"", keep=True, no_body=no_body)


async def outcome(answer: Answer) -> tuple[object, ...]:
    """All that can be seen of an answer whose connection is over."""
    seen: list[object] = []
    try:
        await answer.head()
        seen += [answer.status, dict(answer.headers)]
        body = b""
        try:
            while piece := await answer.read():
                body += piece
        finally:
            seen.append(body)
    except EngineUnavailable:
        seen.append("unavailable")
    return tuple(seen)


def feed(connection: Connection, wire: Wire, data: bytes, cuts: list[int]) -> None:
    """As a loop would: nothing after an abort, then the end."""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in pairwise(edges):
        if not wire.closing:
            connection.data_received(data[start:end])
    connection.connection_lost(None)


BODIES = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n",
    "chunks and trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n",
    "until closed": b"HTTP/1.0 200 OK\r\nX-A: 1\r\nx-a: 2\r\nEmpty:\r\n\r\nhello world",
    "interim": b"HTTP/1.1 103 Hm\r\nA: b\r\n\r\nHTTP/1.1 100 Go\r\n\r\nHTTP/1.1 201 Ok\r\nContent-Length: 2\r\n\r\nok",
    "none": b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
    "cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
    "cut in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    "both framings": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
    "nonsense": b"nonsense\r\n\r\n",
    "no status": b"HTTP/1.1 99 Hm\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nraw",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
}
WHOLE = {
    "a length": (200, {"content-type": "text/plain", "content-length": "5"}, b"hello"),
    "chunks": (200, {"transfer-encoding": "chunked"}, b"hello world"),
    "chunks and trailers": (200, {"transfer-encoding": "chunked"}, b"hi"),
    "until closed": (200, {"x-a": "1, 2", "empty": ""}, b"hello world"),
    "interim": (201, {"content-length": "2"}, b"ok"),
    "none": (204, {"x-a": "b"}, b""),
    "cut short": (200, {"content-length": "50"}, b"hello", "unavailable"),
    "cut in a chunk": (200, {"transfer-encoding": "chunked"}, b"hel", "unavailable"),
    "unknown coding": (200, {"transfer-encoding": "gzip"}, b"hello", "unavailable"),
}


@pytest.mark.parametrize("kind", BODIES)
@given(cuts=st.lists(st.integers(1, 200), max_size=20))
@example(cuts=[])
@example(cuts=list(range(200)))
def test_where_an_answer_is_cut_makes_no_difference(kind: str, cuts: list[int]) -> None:
    async def seen() -> tuple[object, ...]:
        connection, wire = connected()
        answer = ask(connection)
        feed(connection, wire, BODIES[kind], cuts)
        return await outcome(answer)

    assert asyncio.run(seen()) == WHOLE.get(kind, ("unavailable",))


@settings(max_examples=500)
@given(
    kind=st.sampled_from(sorted(BODIES)),
    cuts=st.lists(st.integers(1, 200), max_size=5),
    seed=st.integers(0, 2**32),
    raw=st.none() | st.binary(max_size=200),
)
def test_a_damaged_answer_ends_in_an_answer_or_in_an_error_of_ours(
    kind: str, cuts: list[int], seed: int, raw: bytes | None
) -> None:
    dice = random.Random(seed)
    data = bytearray(BODIES[kind] + BODIES[dice.choice(sorted(BODIES))] if raw is None else raw)
    for _ in range(dice.randrange(4)):
        at = dice.randrange(len(data) + 1)
        data[at : at + dice.randrange(3)] = dice.choice([b"", b"\r\n", b"\0", b"9", b":", b"\xff", b"chunked"])

    async def seen() -> tuple[object, ...]:
        connection, wire = connected()
        answer = ask(connection)
        feed(connection, wire, bytes(data), cuts)
        async with asyncio.timeout(5):  # nothing is left to wait for
            return await outcome(answer)

    asyncio.run(seen())


async def test_a_small_request_is_one_write() -> None:
    connection, wire = connected()
    connection.ask(b"POST / HTTP/1.1\r\n\r\n", b"body", keep=True, no_body=False)
    assert (bytes(wire.sent), wire.writes) == (b"POST / HTTP/1.1\r\n\r\nbody", 1)


async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_ones() -> None:
    connection, wire = connected()
    answer = ask(connection)
    connection.data_received(BODIES["a length"] + BODIES["chunks"])
    assert await outcome(answer) == WHOLE["a length"]
    assert not connection.reusable
    assert wire.closing

    connection, wire = connected()
    connection.data_received(BODIES["a length"])
    assert wire.closing


@pytest.mark.parametrize(
    ("kind", "extra", "reusable"),
    [
        ("a length", b"", True),
        ("chunks", b"", True),
        ("interim", b"", True),
        ("none", b"", True),
        ("a length", b"Connection: close\r\n", False),
        ("until closed", b"", False),
    ],
)
async def test_a_connection_serves_again_only_if_its_answer_says_so(kind: str, extra: bytes, reusable: bool) -> None:
    connection, _ = connected()
    ask(connection)
    head, _, body = BODIES[kind].rpartition(b"\r\n\r\n") if kind != "chunks" else BODIES[kind].partition(b"\r\n\r\n")
    connection.data_received(head + b"\r\n" + extra + b"\r\n" + body)
    assert connection.reusable == reusable


async def test_a_connection_does_not_serve_again_while_an_answer_is_under_way_or_unread() -> None:
    connection, wire = connected()
    answer = ask(connection)
    assert not connection.reusable
    body = b"x" * (1 << 20)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.complete
    assert not connection.reusable  # it reads no more: the engine had to wait
    assert not wire.reading
    assert await answer.read() == body
    assert connection.reusable
    assert wire.reading


async def test_an_answer_to_head_has_no_body_whatever_it_says() -> None:
    connection, _ = connected()
    answer = ask(connection, no_body=True)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert await outcome(answer) == (200, {"content-length": "5"}, b"")
    assert not connection.reusable


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-%d: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"%d" * 50),
        (b"HTTP/1.1 ", b"0" * 100),
        (b"HTTP/1.1 200 ", b"OK" * 50),
        (b"", b"HTTP/1.1 100 Go\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 100),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-%d: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"y" * 100),
    ],
)
async def test_what_never_comes_to_a_body_is_bounded(start: bytes, more: bytes) -> None:
    connection, wire = connected()
    answer = ask(connection)
    connection.data_received(start)
    sent = 0
    while not wire.closing:
        piece = more % ((sent,) * more.count(b"%d")) if b"%d" in more else more
        connection.data_received(piece)
        sent += len(piece)
        assert sent < 4 * MAX_HEAD_BYTES
    assert answer.failure is not None


async def test_what_came_before_the_end_is_read_before_the_error() -> None:
    connection, _ = connected()
    answer = ask(connection)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel")
    connection.fail(EngineError("enough", engine="e1"))
    assert await answer.read() == b"hel"
    with pytest.raises(EngineError, match="enough"):
        await answer.read()
