"""HTTP to one engine: small JSON calls, and streams relayed as they come.

A client of our own, because the gateway's share of a request's latency is for the most part its HTTP client: one write
per request, one wake-up per read, and nothing that an engine does not need (no redirects, cookies, proxies, decoding).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from nightfill.engines.deadline import Deadline
from nightfill.engines.pool import Origin, Pool, origin_of
from nightfill.errors import EngineError, EngineRefused, EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from nightfill.engines.connection import Answer, Connection

_MAX_CONNECTIONS: Final = 256
_MAX_BODY_BYTES: Final = 256 << 20
_STALE_S: Final = 1.0
"""A connection that breaks later than this after a request may have broken over the request."""
_ANY_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer to a small call."""

    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes

    @property
    def content_type(self) -> str:
        """Media type with its parameters, as sent."""
        return self.headers.get("content-type", _ANY_TYPE)


class StreamResponse:
    """An answer under way. Only inside the context that `Upstream.stream` gave it to; one task reads it."""

    __slots__ = ("_chunks", "content_type", "headers", "status")

    def __init__(self, answer: Answer, chunks: _Chunks) -> None:
        self.status = answer.status
        self.headers: Mapping[str, str] = answer.headers
        """Case-insensitive."""
        self.content_type = self.headers.get("content-type", _ANY_TYPE)
        self._chunks = chunks

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, undecoded, never empty; continues where an earlier iteration stopped.

        Raises EngineUnavailable when the engine dies midway, EngineTimeout when it falls silent.
        """
        return self._chunks


class Upstream:
    """A long-lived HTTP client of one engine. Use it in one event loop, and `aclose` it there.

    Sends to `url` alone, whatever the engine answers: redirects are not followed, cookies not kept, the proxies of the
    environment not used. Deadlines count by `clock`: an engine that is frozen hands in one that stands still.

    A request goes out a second time, once, only if it went out on a connection kept from an earlier one, and that broke
    at once without a single byte of an answer: the engine had closed it while it was idle, and never read the request.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        *,
        engine: str,
        headers: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_connections: int = _MAX_CONNECTIONS,
    ) -> None:
        """`url` has no path; give a function where it changes, which raises an EngineError while there is none.

        `headers` go with every request, such as the engine's key. An `https` address is checked against the system's
        certificates.
        """
        self.engine = engine
        self._url: Callable[[], str] = (lambda: url) if isinstance(url, str) else url
        self._headers = dict(headers or {})
        self._clock = clock
        self._pool = Pool(engine=engine, max_connections=max_connections)
        self._origin: tuple[str, Origin] | None = None
        self._closed = False

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Response:
        """One call, answered whole within `timeout_s` seconds. An error status is a Response like any other.

        Raises EngineUnavailable, EngineTimeout; EngineRefused when the answer is too large to hold.
        """
        deadline = Deadline(timeout_s, self._clock)
        try:
            connection, answer = await self._ask(_Request(method, path, body, headers), deadline)
            try:
                return Response(answer.status, answer.headers, await self._read_whole(answer))
            finally:
                self._pool.give_back(connection)
        finally:
            deadline.stop()

    def stream(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        first_byte_timeout_s: float = 900.0,
        idle_timeout_s: float = 300.0,
    ) -> AbstractAsyncContextManager[StreamResponse]:
        """An answer that comes in pieces. Leaving the context before its end closes the connection at once.

        The first byte of the body must come within `first_byte_timeout_s` seconds, each further one within
        `idle_timeout_s` of the one before; time in which nobody asks for a chunk counts too, so read on. Raises
        EngineUnavailable, EngineTimeout.
        """
        return _Stream(self, _Request(method, path, body, headers), first_byte_timeout_s, idle_timeout_s)

    def drop_idle(self) -> None:
        """Close the connections that are kept for later requests."""
        self._pool.drop_idle()

    async def aclose(self) -> None:
        """Close all connections; calls under way end with EngineUnavailable. Idempotent."""
        self._closed = True
        await self._pool.aclose()

    async def _ask(self, request: _Request, deadline: Deadline) -> tuple[Connection, Answer]:
        """An answer whose head has come, and its connection, which the caller gives back."""
        if self._closed:
            raise EngineUnavailable("its client was closed", engine=self.engine)
        origin = self._where()
        head, keep = self._head(origin, request)
        while True:
            connection = self._pool.at_hand(origin) or await self._taken(origin, deadline)
            try:
                answer = connection.ask(head, request.body or b"", keep=keep, no_body=request.method == "HEAD")
                deadline.guard(lambda: connection.fail(self._silent(deadline)))  # noqa: B023 - one at a time
                if await self._answers(connection, answer, time.monotonic()):
                    return connection, answer
            except BaseException:
                self._pool.give_back(connection)
                raise
            self._pool.give_back(connection)
            self._pool.drop_idle()

    async def _answers(self, connection: Connection, answer: Answer, asked_s: float) -> bool:
        """Wait for the head; False when the connection turned out to be stale, so that the request may go again."""
        try:
            await answer.head()
        except EngineUnavailable:
            stale = connection.requests > 1 and not answer.begun and time.monotonic() - asked_s < _STALE_S
            if self._closed or not stale:
                raise
            return False
        return True

    async def _taken(self, origin: Origin, deadline: Deadline) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as scope:
                deadline.guard(lambda: scope.reschedule(loop.time()))
                return await self._pool.take(origin)
        except TimeoutError as exc:
            raise self._silent(deadline) from exc

    def _where(self) -> Origin:
        url = self._url()
        if self._origin is None or self._origin[0] != url:
            try:
                self._origin = url, origin_of(url)
            except ValueError as exc:
                raise EngineUnavailable(f"cannot be reached at {url!r}: {exc}", engine=self.engine) from exc
        return self._origin[1]

    def _head(self, origin: Origin, request: _Request) -> tuple[bytes, bool]:
        """The request's head, and whether the connection may be kept after it."""
        method, path, body, headers = request
        assert path.startswith("/"), "or it could change the host"
        keep = True
        lines = [f"{method} {origin.base}{path} HTTP/1.1", f"Host: {origin.authority}"]
        for name, value in ({**self._headers, **headers} if headers else self._headers).items():
            lines.append(f"{name}: {value}")
            if name.lower() == "connection":
                keep = value.lower() != "close"
        if body is not None or method not in ("GET", "HEAD"):
            lines.append(f"Content-Length: {len(body) if body is not None else 0}")
        text = "\r\n".join(lines)
        if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or len(lines[0].split()) != 3:
            raise EngineError("cannot be asked: a blank in the path, or a line break in a header", engine=self.engine)
        try:
            return text.encode() + b"\r\n\r\n", keep
        except UnicodeEncodeError as exc:
            raise EngineError("cannot be asked: a header is no text", engine=self.engine) from exc

    async def _read_whole(self, answer: Answer) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := await answer.read():
            size += len(piece)
            if size > _MAX_BODY_BYTES:
                raise EngineRefused(f"answered with over {_MAX_BODY_BYTES} bytes", engine=self.engine, status=502)
            pieces.append(piece)
        return b"".join(pieces)

    def _silent(self, deadline: Deadline) -> EngineTimeout:
        return EngineTimeout(f"sent nothing for {deadline.limit_s:g} s", engine=self.engine)


class _Request(NamedTuple):
    method: str
    path: str
    body: bytes | None
    headers: Mapping[str, str] | None


class _Stream:
    """The context of one stream. A class, because a generator would cost each request more than the connection does."""

    __slots__ = ("_connection", "_deadline", "_first_byte_timeout_s", "_idle_timeout_s", "_request", "_upstream")

    def __init__(
        self, upstream: Upstream, request: _Request, first_byte_timeout_s: float, idle_timeout_s: float
    ) -> None:
        self._upstream = upstream
        self._request = request
        self._first_byte_timeout_s = first_byte_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._deadline: Deadline
        self._connection: Connection

    async def __aenter__(self) -> StreamResponse:
        upstream, idle_s = self._upstream, self._idle_timeout_s
        self._deadline = deadline = Deadline(self._first_byte_timeout_s, upstream._clock, next_limit_s=idle_s)
        try:
            self._connection, answer = await upstream._ask(self._request, deadline)
        except BaseException:
            deadline.stop()
            raise
        return StreamResponse(answer, _Chunks(answer, deadline, upstream._clock, idle_s))

    async def __aexit__(self, *_: object) -> None:
        self._deadline.stop()
        self._upstream._pool.give_back(self._connection)


class _Chunks:
    """The pieces of a body, and the deadline moved by each."""

    __slots__ = ("_answer", "_clock", "_deadline", "_idle_timeout_s")

    def __init__(self, answer: Answer, deadline: Deadline, clock: Callable[[], float], idle_timeout_s: float) -> None:
        self._answer = answer
        self._deadline = deadline
        self._clock = clock
        self._idle_timeout_s: float | None = idle_timeout_s

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._answer.read()
        if not chunk:
            self._deadline.stop()
            raise StopAsyncIteration
        if self._idle_timeout_s is None:
            self._deadline.heard_at = self._clock()
        else:
            self._deadline.restart(self._idle_timeout_s)
            self._idle_timeout_s = None
        return chunk
