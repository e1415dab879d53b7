"""One pipelined connection to a Redis or Valkey server: many callers, one socket, replies in the order of the calls."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import hiredis

from nightfill.errors import StateUnavailable

if TYPE_CHECKING:
    from nightfill.kv.resp import Address

Word: TypeAlias = str | bytes | int
Reply: TypeAlias = "bytes | int | hiredis.HiredisError | list[Reply] | None"

_MAX_WAITING: Final = 10_000
"""Calls without an answer; then new ones are refused."""
_AT_ONCE: Final = 8
"""So many calls wait for each other, to be sent in one go: the server works on them while the next ones are made."""


class ConnectionLost(StateUnavailable):
    """The connection ended before the answer: whether the server did what it was asked is not known."""


class ServerSilent(ConnectionLost):
    """The server did not say anything in time."""


class Connection(asyncio.Protocol):
    """RESP2, logged in and with its database chosen by `open_connection`. Used by one event loop.

    A server that owes an answer and sends nothing for `timeout_s` has lost the connection: all that wait are told.
    """

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._outgoing: list[bytes] = []
        self._heard_at_s = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._closed = self._loop.create_future()

    @property
    def usable(self) -> bool:
        """Whether a call makes sense."""
        return self._transport is not None

    def call(self, *words: Word) -> asyncio.Future[Reply]:
        """Send a command; the answer, which may be an error of the server's, or ConnectionLost.

        Who stops waiting does not undo the command. Raises StateUnavailable when too many wait already.
        """
        if self._transport is None:
            raise ConnectionLost(f"state {self._address}: the connection is gone")
        if len(self._waiting) >= _MAX_WAITING:
            raise StateUnavailable(f"state {self._address}: {_MAX_WAITING} commands wait for an answer already")
        if not self._waiting:
            self._heard_at_s = self._loop.time()
            if self._watch is None:
                self._watch = self._loop.call_later(self._timeout_s, self._look)
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting.append(answer)
        if not self._outgoing:  # what else is called in this turn of the loop goes with it
            self._loop.call_soon(self._flush)
        # Its types leave out the plural.
        self._outgoing.append(hiredis.pack_command(words))  # type: ignore[arg-type]
        if len(self._outgoing) >= _AT_ONCE:
            self._flush()
        return answer

    async def aclose(self) -> None:
        """Hang up; whoever still waits is told. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
            await asyncio.wait({self._closed})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._heard_at_s = self._loop.time()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                answer = self._waiting.popleft()
                if not answer.done():  # else nobody waits for it any more
                    answer.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self._lose(ConnectionLost(f"state {self._address}: answers what is not RESP, or what nobody asked"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._lose(ConnectionLost(f"state {self._address}: the connection ended{f': {exc}' if exc else ''}"))
        if not self._closed.done():
            self._closed.set_result(None)

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _look(self) -> None:
        self._watch = None
        if not self._waiting:
            return
        left_s = self._heard_at_s + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._watch = self._loop.call_later(left_s, self._look)
            return
        self._lose(ServerSilent(f"state {self._address}: no answer within {self._timeout_s:g} s"))

    def _lose(self, why: ConnectionLost) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(why)


async def open_connection(address: Address, *, timeout_s: float) -> Connection:
    """Connect, log in, choose the database. Raises StateUnavailable, which never names the password."""
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        return Connection(address, timeout_s=timeout_s)

    try:
        async with asyncio.timeout(timeout_s):
            if address.path:
                _, connection = await loop.create_unix_connection(make, address.path)
            else:
                context = ssl.create_default_context() if address.tls else None
                _, connection = await loop.create_connection(make, address.host, address.port, ssl=context)
    except TimeoutError as exc:
        raise StateUnavailable(f"state {address}: cannot connect within {timeout_s:g} s") from exc
    except (OSError, UnicodeError) as exc:
        raise StateUnavailable(f"state {address}: cannot connect: {exc}") from exc
    try:
        greeting: list[asyncio.Future[Reply]] = []
        if address.password or address.user:
            words = (address.user, address.password) if address.user else (address.password,)
            greeting.append(connection.call("AUTH", *words))
        if address.db:
            greeting.append(connection.call("SELECT", address.db))
        greeting.append(connection.call("PING"))
        refused = [reply for reply in await asyncio.gather(*greeting) if isinstance(reply, hiredis.HiredisError)]
    except BaseException:
        await connection.aclose()
        raise
    if refused:
        await connection.aclose()
        raise StateUnavailable(f"state {address}: {refused[0]}")
    return connection
