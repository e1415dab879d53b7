"""One HTTP/1.1 connection to an engine, one request after another; the only importer of httptools.

The parser is llhttp in its strict mode. What it leaves to its user is done here: bounds on heads, the end of bodies
that last until the connection closes, interim answers, and answers that nobody asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

import httptools

from nightfill.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nightfill.errors import EngineError

MAX_HEAD_BYTES: Final = 64 << 10
"""Of an answer's headers, trailers and interim answers together, and of any run of bytes that carries no body."""
_HELD_BYTES: Final = 256 << 10
"""Of a body, unread; then the engine has to wait."""
_JOINED_BYTES: Final = 64 << 10
"""Bodies up to this size are copied behind their head: cheaper than a second buffer."""


class Headers(Mapping[str, str]):
    """Headers of an answer by name in any case; repeated ones are joined by a comma. Iterates over lower-case names."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def add(self, name: bytes, value: bytes) -> None:
        """One line of the head."""
        name = name.lower()
        known = self._values.get(name)
        self._values[name] = value if known is None else known + b", " + value

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower().encode()].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._values)

    def __len__(self) -> int:
        return len(self._values)


class Answer:
    """What comes back for one request, as it comes. One task reads it."""

    __slots__ = (
        "_connection",
        "_held_bytes",
        "_pieces",
        "_waiter",
        "begun",
        "complete",
        "failure",
        "headers",
        "status",
    )

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        """0 until the head is there."""
        self.headers = Headers()
        self.begun = False
        """A byte came."""
        self.complete = False
        self.failure: EngineError | None = None
        """Why the rest will not come."""
        self._connection = connection
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> None:
        """Wait for status and headers. Raises what ended the connection."""
        while not self.status:
            await self._more()

    async def read(self) -> bytes:
        """What came of the body since the last call, at least a byte; empty at its end.

        What came before the connection failed is read first; then this raises what ended it.
        """
        while not self._pieces:
            if self.complete:
                return b""
            await self._more()
        pieces, self._pieces, self._held_bytes = self._pieces, [], 0
        self._connection.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _more(self) -> None:
        if self.failure is not None:
            raise self.failure
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def take(self, piece: bytes) -> bool:
        """Hold a piece of the body until it is read; whether that is enough for now."""
        self._pieces.append(piece)
        self._held_bytes += len(piece)
        return self._held_bytes > _HELD_BYTES

    def wake(self) -> None:
        """Something changed."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, failure: EngineError) -> None:
        """The rest will not come. Does nothing when it came, or failed before."""
        if not self.complete and self.failure is None:
            self.failure = failure
            self.wake()


class _Malformed(Exception):
    """The engine does not speak HTTP; raised in the parser's callbacks alone, which wraps it."""


class Connection(asyncio.Protocol):
    """A connection and the answer that it waits for, if any. Give it to an event loop's `create_connection`."""

    def __init__(self, *, engine: str, on_lost: Callable[[Connection], object]) -> None:
        self.requests = 0
        """Sent so far."""
        self._engine = engine
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._keep = True
        self._no_body = False
        self._interim = False
        self._head_bytes = 0
        self._silent_bytes = 0
        self._paused = False

    def ask(self, head: bytes, body: bytes, *, keep: bool, no_body: bool) -> Answer:
        """Send a request; its answer is on the way. Only while `reusable`.

        keep: whether the connection may serve another one after this. no_body: the answer has none, whatever its head
        says (to HEAD).
        """
        assert self._transport is not None
        assert self._answer is None or self._answer.complete
        self.requests += 1
        self._keep, self._no_body = keep, no_body
        self._interim = False
        self._head_bytes = self._silent_bytes = 0
        self._answer = answer = Answer(self)
        if self._transport.is_closing():  # the loop has yet to tell us
            self._lose(None)
        elif len(body) <= _JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        return answer

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: the last one is over, and both sides keep the connection."""
        return (
            self._keep
            and self._transport is not None
            and not self._transport.is_closing()
            and (self._answer is None or self._answer.complete)
            and not self._paused
            and self._transport.get_write_buffer_size() == 0
        )

    def fail(self, failure: EngineError) -> None:
        """Close at once; an answer under way ends with `failure`."""
        if self._answer is not None:
            self._answer.fail(failure)
        self.abort()

    def abort(self) -> None:
        """Close at once, throwing away what is on its way. Idempotent."""
        self._keep = False
        if self._transport is not None:
            self._transport.abort()

    def resume_reading(self) -> None:
        """What was held has been read."""
        if self._paused:
            self._paused = False
            assert self._transport is not None
            self._transport.resume_reading()

    # --- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Part of `asyncio.Protocol`."""
        answer, parser = self._answer, self._parser
        if answer is None or answer.complete or parser is None:
            self.abort()  # nobody asked; were it kept, the next request would take it for its answer
            return
        answer.begun = True
        self._silent_bytes += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._refuse(exc)
        if self._silent_bytes > MAX_HEAD_BYTES:
            self._refuse(_Malformed(f"over {MAX_HEAD_BYTES} bytes that are no body"))
        answer.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of `asyncio.Protocol`."""
        self._lose(exc)
        self._parser = None  # it refers to us
        self._on_lost(self)

    def _refuse(self, exc: Exception) -> None:
        reason = exc.__context__ if isinstance(exc.__context__, _Malformed) else exc
        failure = EngineUnavailable(f"sent what is not HTTP ({reason})", engine=self._engine)
        failure.__cause__ = exc
        self.fail(failure)

    def _lose(self, exc: Exception | None) -> None:
        answer = self._answer
        if answer is None or answer.complete:
            return
        if exc is None and answer.status and answer.failure is None and _lasts_until_closed(answer.headers):
            answer.complete = True
            answer.wake()
            return
        when = "in the middle of an answer" if answer.begun else "before an answer began"
        failure = EngineUnavailable(f"connection lost {when}", engine=self._engine)
        failure.__cause__ = exc
        answer.fail(failure)

    # --- called by the parser

    def on_message_begin(self) -> None:
        """Part of httptools' protocol, as are the four that follow."""
        if self._answer is None or self._answer.complete:
            raise _Malformed("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        answer = self._answer
        assert answer is not None
        self._silent_bytes = 0
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _Malformed(f"a head of over {MAX_HEAD_BYTES} bytes")
        if not answer.status:
            answer.headers.add(name, value)
        # otherwise it is a trailer, of which no engine's answer has any use

    def on_headers_complete(self) -> None:  # noqa: D102
        answer, parser = self._answer, self._parser
        assert answer is not None
        assert parser is not None
        self._silent_bytes = 0
        status = parser.get_status_code()
        if status == 101 or not 100 <= status < 600:
            raise _Malformed(f"status {status}")
        if status < 200:  # the real answer is still to come
            self._interim = True
            self.on_header(b"HTTP/1.1 100", b"")  # it counts, or there could be any number of them
            answer.headers = Headers()
            return
        answer.status = status
        self._keep = self._keep and parser.should_keep_alive()
        if self._no_body:
            # The parser waits for a body all the same, so it cannot be used again.
            self._keep = False
            answer.complete = True

    def on_body(self, piece: bytes) -> None:  # noqa: D102
        answer = self._answer
        assert answer is not None
        self._silent_bytes = 0
        if not answer.complete and answer.take(piece) and not self._paused:
            self._paused = True
            assert self._transport is not None
            self._transport.pause_reading()

    def on_message_complete(self) -> None:  # noqa: D102
        assert self._answer is not None
        if self._interim:
            self._interim = False
        else:
            self._answer.complete = True


def _lasts_until_closed(headers: Headers) -> bool:
    return "content-length" not in headers and "transfer-encoding" not in headers
