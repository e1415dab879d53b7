"""Connections to one engine: opened when needed, kept for a moment, bounded in number."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from nightfill.engines.connection import Connection
from nightfill.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

_CONNECT_TIMEOUT_S: Final = 5.0
_KEEP_ALIVE_S: Final = 3.0
"""Less than the 5 s after which llama.cpp and uvicorn close an idle connection, or a request could meet the closing."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an engine listens."""

    host: str
    port: int
    tls: bool
    authority: str
    """As the header `Host` says it."""
    base: str
    """Path before every path; empty or `/...` without a slash at its end."""


def origin_of(url: str) -> Origin:
    """Take `http://HOST[:PORT]` or `https://...` apart. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("not of the form http://HOST[:PORT]")
    if parts.query or parts.fragment:
        raise ValueError("it has a query")
    tls = parts.scheme == "https"
    port = parts.port if parts.port is not None else (443 if tls else 80)
    return Origin(parts.hostname, port, tls, parts.netloc, parts.path.rstrip("/"))


class Pool:
    """At most `max_connections` at once; who comes beyond them waits, until cancelled. Used by one event loop."""

    def __init__(self, *, engine: str, max_connections: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._free_places = max_connections
        self._line: deque[asyncio.Future[None]] = deque()
        """Who waits for a place, in order; a place that is handed on is never free in between."""
        self._origin: Origin | None = None
        self._idle: list[tuple[Connection, float]] = []
        """With the time since when, oldest first."""
        self._open: set[Connection] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    def at_hand(self, origin: Origin) -> Connection | None:
        """An idle connection for one request, the most recently used one; None if one has to be waited for."""
        if not self._free_places or origin != self._origin:
            return None
        connection = self._freshest()
        if connection is not None:
            self._free_places -= 1
        return connection

    async def take(self, origin: Origin) -> Connection:
        """A connection for one request, a new one if none is idle; `give_back` it, as the one at hand, in any case.

        Raises EngineUnavailable.
        """
        await self._place()
        try:
            if origin != self._origin:
                self.drop_idle()
                self._origin = origin
            return self._freshest() or await self._connected(origin)
        except BaseException:
            self._release()
            raise

    def give_back(self, connection: Connection) -> None:
        """Keep the connection for the next request, or close it if it cannot serve one."""
        if self._closed or not connection.reusable:
            connection.abort()
        else:
            self._idle.append((connection, self._clock()))
            if self._sweep_timer is None:
                self._sweep_timer = asyncio.get_running_loop().call_later(_KEEP_ALIVE_S, self._sweep)
        self._release()

    async def _place(self) -> None:
        if self._free_places:
            self._free_places -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._line.remove(turn)
            else:
                self._release()  # our turn came in the same moment
            raise

    def _release(self) -> None:
        for turn in self._line:
            if not turn.done():
                self._line.remove(turn)
                turn.set_result(None)
                return
        self._free_places += 1

    def drop_idle(self) -> None:
        """Close what is idle: the engine is somewhere else now, or closed a connection that we meant to use."""
        for connection, _ in self._idle:
            connection.abort()
        self._idle.clear()

    async def aclose(self) -> None:
        """Close all connections; answers under way end with EngineUnavailable. Idempotent."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._idle.clear()
        for connection in tuple(self._open):
            connection.fail(self._gone())
        await asyncio.sleep(0)  # the loop closes the sockets

    def _freshest(self) -> Connection | None:
        while self._idle:
            connection, since_s = self._idle.pop()
            if self._clock() - since_s > _KEEP_ALIVE_S:
                connection.abort()
                self.drop_idle()  # all others are older
            elif connection.reusable:
                return connection
        return None

    async def _connected(self, origin: Origin) -> Connection:
        if self._closed:
            raise self._gone()
        if origin.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(engine=self._engine, on_lost=self._open.discard),
                    origin.host,
                    origin.port,
                    ssl=self._tls if origin.tls else None,
                )
        except (OSError, UnicodeError) as exc:  # TimeoutError is an OSError; a host's name may be no name at all
            reason = getattr(exc, "strerror", None) or str(exc) or f"no connection within {_CONNECT_TIMEOUT_S:g} s"
            raise EngineUnavailable(f"cannot be reached ({reason})", engine=self._engine) from exc
        self._open.add(connection)
        if self._closed:
            connection.abort()
            raise self._gone()
        return connection

    def _sweep(self) -> None:
        horizon_s = self._clock() - _KEEP_ALIVE_S
        kept = [(connection, since_s) for connection, since_s in self._idle if since_s > horizon_s]
        for connection, _ in self._idle[: len(self._idle) - len(kept)]:
            connection.abort()
        self._idle = kept
        loop = asyncio.get_running_loop()
        self._sweep_timer = loop.call_later(_KEEP_ALIVE_S, self._sweep) if kept else None

    def _gone(self) -> EngineUnavailable:
        return EngineUnavailable("connection lost, its client was closed", engine=self._engine)
