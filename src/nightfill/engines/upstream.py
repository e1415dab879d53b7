"""HTTP to one engine: small JSON calls, and streams relayed as they come. The only importer of aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from nightfill.errors import EngineError, EngineRefused, EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

_CONNECT_TIMEOUT_S: Final = 5.0
_KEEP_ALIVE_S: Final = 3.0
"""Less than the 5 s after which llama.cpp closes an idle connection, or a request could meet the closing."""
_MAX_CONNECTIONS: Final = 256
_MAX_BODY_BYTES: Final = 256 << 20
_LARGE_BODY_BYTES: Final = 1 << 20
_LEAST_LOOK_S: Final = 0.02


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
        return self.headers.get("Content-Type", "application/octet-stream")


class StreamResponse:
    """An answer under way. Only inside the context that `Upstream.stream` gave it to; one task reads it."""

    __slots__ = ("_chunks", "content_type", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, chunks: _Chunks) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.content_type = self.headers.get("Content-Type", "application/octet-stream")
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

        `headers` go with every request, such as the engine's key.
        """
        self.engine = engine
        self._url: Callable[[], str] = (lambda: url) if isinstance(url, str) else url
        self._headers = dict(headers or {})
        self._clock = clock
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None
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
        loop = asyncio.get_running_loop()
        watch = _Watch(timeout_s, self._clock)
        try:
            async with asyncio.timeout(None) as scope:
                watch.start(lambda: scope.reschedule(loop.time()))
                async with self._send(method, path, body, headers) as response:
                    return Response(response.status, response.headers, await self._read_whole(response))
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise self._translated(error, watch) from error
        finally:
            watch.stop()

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        first_byte_timeout_s: float = 900.0,
        idle_timeout_s: float = 300.0,
    ) -> AsyncIterator[StreamResponse]:
        """An answer that comes in pieces. Leaving the context before its end closes the connection at once.

        The first byte of the body must come within `first_byte_timeout_s` seconds, each further one within
        `idle_timeout_s` of the one before; time in which nobody asks for a chunk counts too, so read on. Raises
        EngineUnavailable, EngineTimeout.
        """
        loop = asyncio.get_running_loop()
        watch = _Watch(first_byte_timeout_s, self._clock)
        response: aiohttp.ClientResponse | None = None
        try:
            try:
                async with asyncio.timeout(None) as scope:
                    watch.start(lambda: scope.reschedule(loop.time()))
                    response = await self._send(method, path, body, headers)
            except (aiohttp.ClientError, OSError) as error:
                raise self._translated(error, watch) from error
            watch.on_expiry = response.close
            yield StreamResponse(response, _Chunks(self, response, watch, idle_timeout_s))
        finally:
            watch.stop()
            if response is not None:
                response.close()  # gives the connection up if the body was not read to its end, else nothing

    async def aclose(self) -> None:
        """Close all connections; calls under way end with EngineUnavailable. Idempotent."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> aiohttp.client._RequestContextManager:
        assert path.startswith("/"), "or it could change the host"
        # aiohttp warns of large bodies given as bytes, because it writes them in one go.
        data = io.BytesIO(body) if body is not None and len(body) >= _LARGE_BODY_BYTES else body
        return self._connected().request(
            method,
            URL(self._url() + path, encoded=True),
            data=data,
            headers={**self._headers, **headers} if headers else self._headers,
            allow_redirects=False,
        )

    def _connected(self) -> aiohttp.ClientSession:
        if self._closed:
            raise EngineUnavailable("its client was closed", engine=self.engine)
        if self._session is None:  # made here because a session belongs to the running loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=_KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def _read_whole(self, response: aiohttp.ClientResponse) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > _MAX_BODY_BYTES:
                response.close()
                raise EngineRefused(f"answered with over {_MAX_BODY_BYTES} bytes", engine=self.engine, status=502)
            pieces.append(piece)
        return b"".join(pieces)

    def _translated(self, error: Exception, watch: _Watch) -> EngineError:
        if watch.expired:
            return EngineTimeout(f"sent nothing for {watch.limit_s:g} s", engine=self.engine)
        if isinstance(error, aiohttp.ClientConnectorError):
            return EngineUnavailable(f"cannot be reached ({error.os_error.strerror or error})", engine=self.engine)
        return EngineUnavailable(f"connection lost ({type(error).__name__})", engine=self.engine)


class _Watch:
    """A deadline that is moved by writing down when something was heard, so that a chunk costs no timer."""

    __slots__ = ("_clock", "_timer", "expired", "heard_at", "limit_s", "on_expiry")

    def __init__(self, limit_s: float, clock: Callable[[], float]) -> None:
        self.limit_s = limit_s
        self.expired = False
        self.on_expiry: Callable[[], object] = lambda: None
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self.heard_at = clock()

    def start(self, on_expiry: Callable[[], object]) -> None:
        self.on_expiry = on_expiry
        self._look()

    def restart(self, limit_s: float) -> None:
        """Another limit from now on."""
        self.stop()
        self.limit_s, self.heard_at = limit_s, self._clock()
        self._look()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        left_s = self.heard_at + self.limit_s - self._clock()
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(max(left_s, _LEAST_LOOK_S), self._look)
        else:
            self.expired = True
            self.on_expiry()


class _Chunks:
    """The pieces of a body: the stream reader's iteration, plus the deadline and our errors, in one step per chunk."""

    __slots__ = ("_clock", "_idle_timeout_s", "_read", "_upstream", "_watch")

    def __init__(
        self, upstream: Upstream, response: aiohttp.ClientResponse, watch: _Watch, idle_timeout_s: float
    ) -> None:
        self._upstream = upstream
        self._read = response.content.readany
        self._watch = watch
        self._clock = upstream._clock
        self._idle_timeout_s: float | None = idle_timeout_s

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._upstream._translated(error, self._watch) from error
        if not chunk:
            self._watch.stop()
            raise StopAsyncIteration
        if self._idle_timeout_s is None:
            self._watch.heard_at = self._clock()
        else:
            self._watch.restart(self._idle_timeout_s)
            self._idle_timeout_s = None
        return chunk
