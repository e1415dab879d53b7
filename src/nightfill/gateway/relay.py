"""Sending an engine's answer on to the client: bytes as they come, and an abort the moment the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nightfill.engines.engine import Tokens
from nightfill.errors import ClientLeft, EngineError, EngineTimeout, NightfillError
from nightfill.gateway.refusal import event_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nightfill.engines.engine import Call, Engine, Reply
    from nightfill.gateway.exchange import Exchange, Header

_CONTENT: Final = re.compile(rb'"(?:content|text|reasoning_content|arguments|name|delta)"\s*:\s*"[^"]')
"""A chunk that carries the first piece of an answer; those before it open roles, count prompts or keep alive."""
_LAST_WORDS_S: Final = 1.0
MAX_BUFFERED_BYTES: Final = 256 << 20
"""An answer that is not streamed is held until its end, so that its headers can be exact."""


@dataclass(slots=True)
class Trip:
    """What became of one request on its way; filled in as it goes. Times are `time.monotonic` seconds, 0 for never."""

    engine: str
    asked_s: float = 0.0
    """When the engine was asked."""
    first_s: float = 0.0
    """When its first byte came."""
    content_s: float = 0.0
    """When the first piece of the answer's content came."""
    status: int = 0
    loaded_tokens: int = 0
    restore_s: float = 0.0
    queued_s: float = 0.0
    tokens: Tokens = field(default_factory=Tokens)
    error: NightfillError | None = None
    complete: bool = False
    """The engine's answer came to its end."""

    def note(self, reply: Reply) -> None:
        """Take over what the reply says of itself by now."""
        self.status = reply.status
        self.loaded_tokens = reply.loaded_tokens
        self.restore_s, self.queued_s = reply.restore_s, reply.queued_s
        self.tokens = reply.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Deadlines in seconds: to the engine's first byte, and between two chunks, the client's reading included."""

    first_byte_s: float
    idle_s: float


class Relay:
    """Carries one answer. `abort` may be called from elsewhere on the same loop."""

    def __init__(self, exchange: Exchange, limits: Limits, head: Callable[[Trip], list[Header]], trip: Trip) -> None:
        self._exchange = exchange
        self._limits = limits
        self._head = head
        self._trip = trip
        self._pump: asyncio.Task[None] | None = None
        self._streaming = False
        self._ending = False

    def abort(self, reason: NightfillError) -> None:
        """End the answer now; the client is told why. Idempotent."""
        if self._pump is not None and not self._pump.done():
            self._trip.error = self._trip.error or reason
            self._pump.cancel()

    async def run(self, engine: Engine, call: Call) -> None:
        """Ask the engine and send on what it answers.

        Raises what the engine raised if nothing was sent yet; after that, errors go to the client as an event. Raises
        ClientLeft when the client hung up. Either way `trip` says what happened.
        """
        trip = self._trip
        try:
            async with asyncio.TaskGroup() as tasks:
                self._pump = pump = tasks.create_task(self._carry(engine, call), name="relay-pump")
                watch = tasks.create_task(self._exchange.left(), name="relay-watch")
                pump.add_done_callback(lambda _: watch.cancel())
                watch.add_done_callback(self._watched)
        except* NightfillError as group:
            trip.error = trip.error or _first(group)
        error = trip.error
        if error is None:
            return
        if isinstance(error, ClientLeft) or not self._exchange.head_sent:
            raise error
        if self._streaming:
            try:
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._exchange.send(event_of(error), more=False)
            except TimeoutError:
                pass  # a client that does not read; the connection ends all the same
        # Otherwise the connection ends before the promised length is reached, which no client takes for success.

    def _watched(self, watch: asyncio.Task[None]) -> None:
        # Once the last byte is handed over, the server reports a disconnect as a matter of course.
        if not watch.cancelled() and not self._ending:
            self.abort(ClientLeft("the client left before its answer was complete"))

    async def _carry(self, engine: Engine, call: Call) -> None:
        trip, limits = self._trip, self._limits
        trip.asked_s = time.monotonic()
        try:
            async with asyncio.timeout(limits.first_byte_s) as deadline, engine.open(call) as reply:
                trip.note(reply)
                if call.stream and reply.status == 200 and reply.content_type.startswith("text/event-stream"):
                    await self._stream(reply, deadline)
                else:
                    await self._whole(reply, deadline)
                trip.note(reply)
                trip.complete = True
        except TimeoutError as exc:
            if trip.first_s:
                message = f"no chunk went through within {limits.idle_s:g} s"
            else:
                message = f"no answer began within {limits.first_byte_s:g} s"
            raise EngineTimeout(message, engine=trip.engine) from exc

    async def _stream(self, reply: Reply, deadline: asyncio.Timeout) -> None:
        trip, exchange, idle_s = self._trip, self._exchange, self._limits.idle_s
        clock = asyncio.get_running_loop().time
        async with _closing(reply.chunks()) as chunks:
            async for chunk in chunks:
                if not trip.first_s:
                    trip.first_s = time.monotonic()
                    trip.note(reply)
                    head = [(b"content-type", reply.content_type.encode("latin-1")), (b"cache-control", b"no-cache")]
                    self._streaming = True
                    await exchange.start(reply.status, [*head, *self._head(trip)])
                if not trip.content_s and _CONTENT.search(chunk):
                    trip.content_s = time.monotonic()
                    trip.note(reply)
                await exchange.send(chunk, more=True)
                deadline.reschedule(clock() + idle_s)
        if not trip.first_s:
            raise EngineError("the stream ended before it began", engine=trip.engine)
        self._ending = True
        await exchange.send(b"", more=False)

    async def _whole(self, reply: Reply, deadline: asyncio.Timeout) -> None:
        trip = self._trip
        clock = asyncio.get_running_loop().time
        pieces: list[bytes] = []
        size = 0
        async with _closing(reply.chunks()) as chunks:
            async for piece in chunks:
                trip.first_s = trip.first_s or time.monotonic()
                size += len(piece)
                if size > MAX_BUFFERED_BYTES:
                    raise EngineError(f"the answer has more than {MAX_BUFFERED_BYTES} bytes", engine=trip.engine)
                pieces.append(piece)
                deadline.reschedule(clock() + self._limits.idle_s)
        trip.first_s = trip.content_s = trip.first_s or time.monotonic()
        trip.note(reply)
        self._ending = True
        await self._exchange.respond(
            reply.status,
            b"".join(pieces),
            content_type=reply.content_type.encode("latin-1"),
            headers=self._head(trip),
        )


@contextlib.asynccontextmanager
async def _closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Close a generator that is left halfway here and now, not when the garbage collector finds it."""
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _first(group: BaseExceptionGroup[NightfillError]) -> NightfillError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, NightfillError)
    return error
