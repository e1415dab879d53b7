"""Over real sockets, against a server that does what each test scripts, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from nightfill.engines.upstream import Upstream
from nightfill.errors import EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

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

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
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
