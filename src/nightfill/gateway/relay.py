"""Sending an engine's answer on to the client: bytes as they come, and an abort the moment the client leaves."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nightfill.engines.deadline import Deadline
from nightfill.engines.engine import Tokens
from nightfill.errors import ClientLeft, EngineError, EngineRefused, EngineTimeout, NightfillError
from nightfill.gateway.refusal import event_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nightfill.engines.engine import Call, Engine, Reply, Weighed
    from nightfill.gateway.exchange import Exchange, Header

_CONTENT: Final = re.compile(rb'"(?:content|text|reasoning_content|arguments|name|delta)"\s*:\s*"[^"]')
"""A chunk that carries the first piece of an answer; those before it open roles, count prompts or keep alive."""
_LAST_WORDS_S: Final = 1.0
_WATCH_AFTER_S: Final = 0.02
"""A client that leaves is noticed from here on. Answers that take less time are not worth a task that looks for it."""
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
    weighed: Weighed | None = None
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
        self.weighed = reply.weighed
        self.tokens = reply.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Deadlines in seconds: to the engine's first byte, and between two chunks, the client's reading included."""

    first_byte_s: float
    idle_s: float


class Relay:
    """Carries one answer, in the task that runs it. `abort` may be called from elsewhere on the same loop."""

    def __init__(
        self,
        exchange: Exchange,
        limits: Limits,
        head: Callable[[Trip], list[Header]],
        trip: Trip,
        *,
        tap: Callable[[bytes], None] | None = None,
        spare: bool = False,
    ) -> None:
        """`tap` is handed each piece of a reply of status 200, of a stream whole events. `spare`: another engine is
        asked when this one answers with an error, which is then raised as EngineRefused instead of being sent on.
        """
        self._exchange = exchange
        self._tap = tap
        self._spare = spare
        self._limits = limits
        self._head = head
        self._trip = trip
        self._scope: asyncio.Timeout | None = None
        self._deadline: Deadline
        self._streaming = False
        self._ending = False

    def abort(self, reason: NightfillError) -> None:
        """End the answer now; the client is told why. Idempotent, and too late once the answer is over."""
        if self._trip.error is None and self._scope is not None:
            self._trip.error = reason
            self._interrupt()

    async def run(self, engine: Engine, call: Call) -> None:
        """Ask the engine and send on what it answers.

        Raises what the engine raised if nothing was sent yet; after that, errors go to the client as an event. Raises
        ClientLeft when the client hung up. Either way `trip` says what happened.
        """
        trip = self._trip
        self._deadline = Deadline(self._limits.first_byte_s, time.monotonic, next_limit_s=self._limits.idle_s)
        watch = _Watch(self._exchange, self._left)
        try:
            async with asyncio.timeout(None) as self._scope:
                self._deadline.guard(self._interrupt)
                await self._carry(engine, call)
            trip.error = None  # what came too late to interrupt it
        except TimeoutError:
            trip.error = trip.error or self._silence()
        except NightfillError as exc:
            trip.error = trip.error or exc
        finally:
            self._scope = None
            self._deadline.stop()
            await watch.aclose()
        if trip.error is not None:
            await self._tell(trip.error)

    async def _tell(self, error: NightfillError) -> None:
        if isinstance(error, ClientLeft) or not self._exchange.head_sent:
            raise error
        if self._streaming:
            try:
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._exchange.send(event_of(error), more=False)
            except TimeoutError:
                pass  # a client that does not read; the connection ends all the same
        # Otherwise the connection ends before the promised length is reached, which no client takes for success.

    def _interrupt(self) -> None:
        assert self._scope is not None
        self._scope.reschedule(asyncio.get_running_loop().time())

    def _left(self) -> None:
        # Once the last byte is handed over, the server reports a disconnect as a matter of course.
        if not self._ending:
            self.abort(ClientLeft("the client left before its answer was complete"))

    def _silence(self) -> EngineTimeout:
        if self._trip.first_s:
            message = f"no chunk went through within {self._limits.idle_s:g} s"
        else:
            message = f"no answer began within {self._limits.first_byte_s:g} s"
        return EngineTimeout(message, engine=self._trip.engine)

    async def _carry(self, engine: Engine, call: Call) -> None:
        trip = self._trip
        trip.asked_s = time.monotonic()
        async with engine.open(call) as reply:
            trip.note(reply)
            if call.stream and reply.status == 200 and reply.content_type.startswith("text/event-stream"):
                await self._stream(reply)
            else:
                await self._whole(reply)
            trip.note(reply)
            trip.complete = True

    async def _stream(self, reply: Reply) -> None:
        trip, exchange = self._trip, self._exchange
        chunks = reply.chunks()
        try:
            async for chunk in chunks:
                now_s = time.monotonic()
                if not trip.first_s:
                    self._begin(now_s)
                    trip.note(reply)
                    head = [(b"content-type", reply.content_type.encode("latin-1")), (b"cache-control", b"no-cache")]
                    self._streaming = True
                    await exchange.start(reply.status, [*head, *self._head(trip)])
                if not trip.content_s and _CONTENT.search(chunk):
                    trip.content_s = now_s
                    trip.note(reply)
                if self._tap is not None:
                    self._tap(chunk)
                await exchange.send(chunk, more=True)
                self._deadline.heard_at = time.monotonic()
        finally:
            await _close(chunks)
        if not trip.first_s:
            raise EngineError("the stream ended before it began", engine=trip.engine)
        self._ending = True
        await exchange.send(b"", more=False)

    async def _whole(self, reply: Reply) -> None:
        trip = self._trip
        pieces: list[bytes] = []
        size = 0
        chunks = reply.chunks()
        try:
            async for piece in chunks:
                now_s = time.monotonic()
                if not trip.first_s:
                    self._begin(now_s)
                size += len(piece)
                if size > MAX_BUFFERED_BYTES:
                    raise EngineError(f"the answer has more than {MAX_BUFFERED_BYTES} bytes", engine=trip.engine)
                pieces.append(piece)
                self._deadline.heard_at = now_s
        finally:
            await _close(chunks)
        trip.first_s = trip.content_s = trip.first_s or time.monotonic()
        trip.note(reply)
        if self._spare and reply.status >= 400:
            raise EngineRefused(f"answered {reply.status}", engine=trip.engine, status=reply.status)
        self._ending = True
        whole = b"".join(pieces)
        if self._tap is not None and reply.status == 200:
            self._tap(whole)
        await self._exchange.respond(
            reply.status,
            whole,
            content_type=reply.content_type.encode("latin-1"),
            headers=self._head(trip),
        )

    def _begin(self, now_s: float) -> None:
        """The first byte came; each further one has `idle_s` to come and to go on."""
        self._trip.first_s = now_s
        self._deadline.restart(self._limits.idle_s)


async def _close(chunks: AsyncIterator[bytes]) -> None:
    """Close a generator that is left halfway here and now, not when the garbage collector finds it."""
    if isinstance(chunks, AsyncGenerator):
        await chunks.aclose()


class _Watch:
    """Calls `on_left` when the client hangs up, at the earliest `_WATCH_AFTER_S` after it began to watch."""

    __slots__ = ("_exchange", "_on_left", "_task", "_timer")

    def __init__(self, exchange: Exchange, on_left: Callable[[], None]) -> None:
        self._exchange = exchange
        self._on_left = on_left
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._run(), name="relay-watch")

    async def _run(self) -> None:
        await self._exchange.left()
        self._on_left()

    async def aclose(self) -> None:
        """Watch no more. Raises what went wrong in watching."""
        self._timer.cancel()
        if self._task is None:
            return
        self._task.cancel()
        try:
            await self._task
        except asyncio.CancelledError:
            us = asyncio.current_task()
            if us is None or us.cancelling():
                raise
