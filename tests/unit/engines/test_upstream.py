"""Over real sockets, against a server that does what each test scripts, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest

from fakes.certificate import certificate
from nightfill.engines import pool
from nightfill.engines import upstream as module
from nightfill.engines.upstream import Upstream
from nightfill.errors import EngineError, EngineRefused, EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Handler = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def piece(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


class Engine:
    """Answers each request on a connection by `handler`, and notes what came."""

    def __init__(self) -> None:
        self.handler: Handler | None = None
        self.requests: list[bytes] = []
        self.connections = 0
        self.left = asyncio.Event()
        """A client closed its connection."""
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                request = head + (await reader.readexactly(length[0]) if length else b"")
                self.requests.append(request)
                assert self.handler is not None
                await self.handler(request, reader, writer)
                await writer.drain()
        self.left.set()
        writer.close()

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def upstream(engine: Engine) -> AsyncIterator[Upstream]:
    upstream = Upstream(engine.url, engine="e1", headers={"Authorization": "Bearer k"})
    yield upstream
    await upstream.aclose()


def sends(*pieces: bytes) -> Handler:
    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for data in pieces:
            writer.write(data)

    return handler


async def falls_silent(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the client leaves


async def test_a_call_is_answered_whole_and_its_connection_used_again(engine: Engine, upstream: Upstream) -> None:
    engine.handler = sends(answer(b'{"a":1}', "418 Teapot", "Content-Type: application/json\r\n"))
    for _ in range(3):
        response = await upstream.request("POST", "/x?y=1", body=b"{}", headers={"X-A": "b"})
        assert (response.status, response.content_type, response.body) == (418, "application/json", b'{"a":1}')
    assert engine.connections == 1
    assert engine.requests[0].startswith(b"POST /x?y=1 HTTP/1.1\r\n")
    head = engine.requests[0].lower()
    assert b"authorization: bearer k" in head
    assert b"x-a: b" in head
    assert b"accept-encoding" not in head


async def test_what_the_engine_says_does_not_lead_elsewhere_or_change_later_requests(
    engine: Engine, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    headers = "Location: http://127.0.0.1:9/\r\nSet-Cookie: a=b\r\nContent-Encoding: gzip\r\n"
    engine.handler = sends(answer(b"not gzip", "302 Found", headers))
    assert (await upstream.request("GET", "/")).body == b"not gzip"
    await upstream.request("GET", "/")
    assert b"cookie" not in engine.requests[1].lower()


async def test_a_large_body_arrives_whole(engine: Engine, upstream: Upstream) -> None:
    engine.handler = sends(answer(b""))
    body = bytes(range(256)) * 8192
    await upstream.request("POST", "/", body=body)
    assert engine.requests[0].endswith(body)


async def test_a_stream_comes_piece_by_piece_as_it_is_sent(engine: Engine, upstream: Upstream) -> None:
    go_on = asyncio.Event()

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + piece(b"one"))
        await go_on.wait()
        writer.write(piece(b"two") + piece(b""))

    engine.handler = handler
    async with upstream.stream("POST", "/", body=b"{}") as stream:
        assert (stream.status, stream.content_type) == (200, "text/event-stream")
        chunks = stream.chunks()
        assert await anext(chunks) == b"one"
        go_on.set()
        assert [chunk async for chunk in chunks] == [b"two"]


async def test_leaving_a_stream_early_closes_its_connection_at_once(engine: Engine, upstream: Upstream) -> None:
    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + piece(b"one"))
        await reader.read()

    engine.handler = handler
    async with upstream.stream("POST", "/", body=b"{}") as stream:
        assert await anext(stream.chunks()) == b"one"
    async with asyncio.timeout(5):
        await engine.left.wait()


async def test_cancelling_before_the_head_came_closes_the_connection(engine: Engine, upstream: Upstream) -> None:
    asked = asyncio.Event()

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()

    async def ask() -> None:
        async with upstream.stream("POST", "/", body=b"{}"):
            raise AssertionError("no head was sent")

    engine.handler = handler
    task = asyncio.create_task(ask())
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await engine.left.wait()


async def test_an_engine_that_dies_midway_is_unavailable(engine: Engine, upstream: Upstream) -> None:
    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + piece(b"one"))
        await writer.drain()
        writer.close()

    engine.handler = handler
    async with upstream.stream("POST", "/") as stream:
        chunks = stream.chunks()
        assert await anext(chunks) == b"one"
        with pytest.raises(EngineUnavailable, match="engine e1: connection lost"):
            await anext(chunks)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200", b"nonsense\r\n\r\n"])
async def test_an_engine_that_does_not_speak_http_is_unavailable(
    engine: Engine, upstream: Upstream, reply: bytes
) -> None:
    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        writer.close()

    engine.handler = handler
    with pytest.raises(EngineUnavailable):
        await upstream.request("POST", "/")
    with pytest.raises(EngineUnavailable):
        async with upstream.stream("POST", "/"):
            pass


async def test_nobody_listening_is_unavailable(engine: Engine, upstream: Upstream) -> None:
    await engine.stop()
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await upstream.request("GET", "/")


async def test_each_silence_has_its_deadline(engine: Engine, upstream: Upstream) -> None:
    engine.handler = falls_silent
    with pytest.raises(EngineTimeout, match=r"sent nothing for 0\.05 s"):
        await upstream.request("GET", "/", timeout_s=0.05)
    with pytest.raises(EngineTimeout, match=r"0\.06 s"):
        async with upstream.stream("GET", "/", first_byte_timeout_s=0.06):
            pass

    async def only_a_head(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        await reader.read()

    engine.handler = only_a_head
    with pytest.raises(EngineTimeout, match=r"0\.07 s"):
        async with upstream.stream("GET", "/", first_byte_timeout_s=0.07, idle_timeout_s=60) as stream:
            await anext(stream.chunks())

    async def one_piece(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + piece(b"one"))
        await reader.read()

    engine.handler = one_piece
    async with upstream.stream("GET", "/", first_byte_timeout_s=60, idle_timeout_s=0.08) as stream:
        chunks = stream.chunks()
        assert await anext(chunks) == b"one"
        with pytest.raises(EngineTimeout, match=r"0\.08 s"):
            await anext(chunks)


async def test_a_deadline_is_counted_by_the_clock_given(engine: Engine) -> None:
    now_s = 0.0
    looked = asyncio.Event()

    def clock() -> float:
        looked.set()
        return now_s

    upstream = Upstream(engine.url, engine="e1", clock=clock)
    engine.handler = falls_silent
    task = asyncio.create_task(upstream.request("GET", "/", timeout_s=0.02))
    for _ in range(3):  # the timer came round, and found that no time had passed
        looked.clear()
        await looked.wait()
    assert not task.done()
    now_s = 1.0
    with pytest.raises(EngineTimeout):
        await task
    await upstream.aclose()


async def test_the_address_is_asked_for_at_each_request(engine: Engine) -> None:
    engine.handler = sends(answer(b"ok"))
    urls = iter([f"http://127.0.0.1:{engine.port}", None])

    def url() -> str:
        found = next(urls)
        if found is None:
            raise EngineUnavailable("is starting", engine="e1")
        return found

    upstream = Upstream(url, engine="e1")
    assert (await upstream.request("GET", "/")).body == b"ok"
    with pytest.raises(EngineUnavailable, match="is starting"):
        await upstream.request("GET", "/")
    await upstream.aclose()


async def test_after_closing_it_is_unavailable(engine: Engine) -> None:
    upstream = Upstream(engine.url, engine="e1")
    engine.handler = falls_silent
    task = asyncio.create_task(upstream.request("GET", "/"))
    async with asyncio.timeout(5):
        while not engine.requests:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await upstream.aclose()
    await upstream.aclose()
    with pytest.raises(EngineUnavailable):
        await task
    with pytest.raises(EngineUnavailable, match="closed"):
        await upstream.request("GET", "/")


async def closes_after_its_answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(b"ok"))
    await writer.drain()
    writer.close()


async def test_a_connection_that_went_stale_costs_a_request_nothing(engine: Engine, upstream: Upstream) -> None:
    """llama.cpp closes a connection that it promised to keep; the next request may already be on its way then."""
    seen = 0

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            writer.close()  # this request is never read by anybody
        else:
            writer.write(answer(b"ok"))

    engine.handler = handler
    for _ in range(2):
        assert (await upstream.request("POST", "/", body=b"{}")).body == b"ok"
    assert (engine.connections, len(engine.requests)) == (2, 3)


async def test_a_connection_that_was_closed_meanwhile_is_not_used(engine: Engine, upstream: Upstream) -> None:
    engine.handler = closes_after_its_answer
    for expected in range(1, 4):
        assert (await upstream.request("POST", "/", body=b"{}")).body == b"ok"
        await engine.left.wait()
        engine.left.clear()
        assert engine.connections == expected


@pytest.mark.parametrize(("first", "sent"), [(b"", b""), (answer(b"ok"), b"H")])
async def test_a_request_goes_out_once_if_the_engine_may_have_worked_on_it(
    engine: Engine, upstream: Upstream, first: bytes, sent: bytes
) -> None:
    replies = iter([first, sent] if first else [sent])

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply = next(replies)
        writer.write(reply)
        await writer.drain()
        if reply == sent:
            writer.close()

    engine.handler = handler
    if first:
        await upstream.request("POST", "/")
    before = len(engine.requests)
    with pytest.raises(EngineUnavailable, match="connection lost"):
        await upstream.request("POST", "/")
    assert len(engine.requests) == before + 1


async def test_a_stale_connection_is_tried_anew_only_once(engine: Engine, upstream: Upstream) -> None:
    replies = iter([answer(b"ok"), b"", b""])

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply = next(replies)
        writer.write(reply)
        if not reply:
            writer.close()

    engine.handler = handler
    await upstream.request("POST", "/")
    with pytest.raises(EngineUnavailable, match="before an answer began"):
        await upstream.request("POST", "/")
    assert len(engine.requests) == 3


async def test_a_connection_is_kept_for_a_moment_only(
    engine: Engine, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_KEEP_ALIVE_S", 0.02)
    engine.handler = sends(answer(b"ok"))
    await upstream.request("GET", "/")
    async with asyncio.timeout(5):
        await engine.left.wait()


async def test_a_connection_is_not_kept_if_the_request_or_the_answer_says_close(
    engine: Engine, upstream: Upstream
) -> None:
    engine.handler = sends(answer(b"ok"))
    await upstream.request("GET", "/", headers={"Connection": "close"})
    engine.handler = sends(answer(b"ok", headers="Connection: close\r\n"))
    await upstream.request("GET", "/")
    await upstream.request("GET", "/")
    assert engine.connections == 3


async def test_parallel_requests_have_connections_of_their_own_up_to_the_bound(engine: Engine) -> None:
    held: list[asyncio.StreamWriter] = []
    three = asyncio.Event()

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        if len(held) == 2:
            three.set()

    engine.handler = handler
    upstream = Upstream(engine.url, engine="e1", max_connections=2)
    tasks = [asyncio.create_task(upstream.request("GET", "/")) for _ in range(3)]
    await three.wait()
    with pytest.raises(EngineTimeout, match=r"0\.05 s"):
        await upstream.request("GET", "/", timeout_s=0.05)
    tasks.pop().cancel()  # it waited in line, and is no longer there
    last = asyncio.create_task(upstream.request("GET", "/"))
    for writer in held:
        writer.write(answer(b"ok"))
    engine.handler = sends(answer(b"third"))
    assert [(await task).body for task in tasks] == [b"ok", b"ok"]
    assert (await last).body == b"third"
    assert engine.connections == 2
    await upstream.aclose()


async def test_a_body_may_last_until_the_connection_closes(engine: Engine, upstream: Upstream) -> None:
    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
        writer.close()

    engine.handler = handler
    assert (await upstream.request("GET", "/")).body == b"hello"


async def test_an_answer_to_head_is_its_head(engine: Engine, upstream: Upstream) -> None:
    engine.handler = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    for _ in range(2):
        response = await upstream.request("HEAD", "/")
        assert (response.body, response.headers["CONTENT-length"]) == (b"", "5")


async def test_an_engine_that_is_read_slowly_has_to_wait(engine: Engine, upstream: Upstream) -> None:
    size, stuck = 64 << 20, asyncio.Event()

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for sent in range(0, size, 1 << 20):
            writer.write(bytes(1 << 20))
            try:
                async with asyncio.timeout(0.2 if sent < size / 2 else None):
                    await writer.drain()
            except TimeoutError:
                stuck.set()
                await writer.drain()

    engine.handler = handler
    async with upstream.stream("GET", "/") as stream:
        async with asyncio.timeout(20):
            await stuck.wait()
        assert sum([len(chunk) async for chunk in stream.chunks()]) == size


async def test_an_answer_that_is_too_large_to_hold_is_refused(
    engine: Engine, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_BODY_BYTES", 1000)
    engine.handler = sends(answer(bytes(1001)))
    with pytest.raises(EngineRefused, match="over 1000 bytes"):
        await upstream.request("GET", "/")


async def test_an_address_may_have_a_path_and_no_other_extras(engine: Engine) -> None:
    engine.handler = sends(answer(b"ok"))
    upstream = Upstream(f"{engine.url}/base/", engine="e1")
    await upstream.request("GET", "/v1")
    assert engine.requests[0].startswith(b"GET /base/v1 HTTP/1.1\r\n")
    assert f"\r\nHost: 127.0.0.1:{engine.port}\r\n".encode() in engine.requests[0]
    await upstream.aclose()
    for url in (
        "ftp://h",
        "h:80",
        "http://",
        "http://h:port",
        "http://u:p@h",
        "http://h?a",
        "http://[::1",
        "http://h:0/",
    ):
        nowhere = Upstream(url, engine="e1")
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await nowhere.request("GET", "/")
        await nowhere.aclose()


async def test_nothing_can_be_smuggled_into_a_request(engine: Engine, upstream: Upstream) -> None:
    for path, headers in (
        ("/ HTTP/1.1\r\nX: y", {}),
        ("/a b", {}),
        ("/", {"X": "y\r\nZ: 1"}),
        ("/", {"X": "y\n"}),
        ("/", {"X": "y\r"}),
        ("/", {"X": "\ud800"}),
    ):
        with pytest.raises(EngineError, match="cannot be asked"):
            await upstream.request("GET", path, headers=headers)
    assert engine.connections == 0


async def test_another_address_means_other_connections(engine: Engine) -> None:
    other = Engine()
    await other.start()
    engine.handler = other.handler = sends(answer(b"ok"))
    url = engine.url
    upstream = Upstream(lambda: url, engine="e1")
    await upstream.request("GET", "/")
    url = other.url
    await upstream.request("GET", "/")
    async with asyncio.timeout(5):
        await engine.left.wait()
    assert (engine.connections, other.connections) == (1, 1)
    await upstream.aclose()
    await other.stop()


async def test_a_client_that_is_closed_midway_says_so(engine: Engine, upstream: Upstream) -> None:
    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + piece(b"one"))
        await reader.read()

    engine.handler = handler
    async with upstream.stream("GET", "/") as stream:
        chunks = stream.chunks()
        assert await anext(chunks) == b"one"
        await upstream.aclose()
        with pytest.raises(EngineUnavailable, match="its client was closed"):
            await anext(chunks)


async def test_an_engine_behind_tls_is_asked_if_the_system_trusts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    cert, key = certificate(tmp_path, "127.0.0.1")
    tls.load_cert_chain(cert, key)
    await engine.start(tls)
    engine.handler = sends(HEAD + piece(bytes(1 << 20)) + piece(b""))
    url = f"https://127.0.0.1:{engine.port}"
    stranger = Upstream(url, engine="e1")
    with pytest.raises(EngineUnavailable, match=r"cannot be reached.*certificate"):
        await stranger.request("GET", "/")
    await stranger.aclose()
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    upstream = Upstream(url, engine="e1")
    for _ in range(2):
        assert (await upstream.request("POST", "/", body=bytes(1 << 20))).body == bytes(1 << 20)
    async with upstream.stream("GET", "/") as stream:
        assert await anext(stream.chunks())
    await upstream.aclose()
    await engine.stop()


async def test_a_connection_that_breaks_long_after_a_request_was_not_stale(
    engine: Engine, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that dies over a request after minutes must not be given it again."""
    monkeypatch.setattr(module, "_STALE_S", 0.0)
    replies = iter([answer(b"ok"), b""])

    async def handler(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply = next(replies)
        writer.write(reply)
        if not reply:
            writer.close()

    engine.handler = handler
    await upstream.request("POST", "/")
    with pytest.raises(EngineUnavailable, match="before an answer began"):
        await upstream.request("POST", "/")
    assert len(engine.requests) == 2
