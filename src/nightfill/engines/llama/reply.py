"""An answer of llama.cpp under way: its bytes passed on as they are, its token counts read in passing."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.engines.aggregate import Aggregate
from nightfill.engines.engine import Tokens
from nightfill.engines.llama.refusals import in_openais_shape
from nightfill.engines.sse import EventSplitter, payloads
from nightfill.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.engines.engine import Weighed
    from nightfill.engines.upstream import StreamResponse

_PROGRESS: Final = b'"prompt_progress"'
_DONE: Final = b"[DONE]"
_MAX_REFUSAL_BYTES: Final = 1 << 20
_TAIL_CHUNKS: Final = 3
"""The counts come with the last event or the last but one, before `[DONE]`."""


class _Progress(msgspec.Struct):
    cache: int
    total: int


class _ProgressEvent(msgspec.Struct):
    prompt_progress: _Progress


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    cache_n: int | None = None
    prompt_n: int | None = None
    prompt_ms: float | None = None
    predicted_n: int | None = None
    predicted_ms: float | None = None
    draft_n: int | None = None
    draft_n_accepted: int | None = None

    @property
    def compute_s(self) -> float | None:
        if self.prompt_ms is None or self.predicted_ms is None:
            return None
        return (self.prompt_ms + self.predicted_ms) / 1000


class _Counts(msgspec.Struct):
    usage: _Usage | None = None
    timings: _Timings | None = None


class _Failure(msgspec.Struct):
    code: int = 500


class _FailureEvent(msgspec.Struct):
    error: _Failure


_failures = msgspec.json.Decoder(_FailureEvent)
_progress = msgspec.json.Decoder(_ProgressEvent)
_counts = msgspec.json.Decoder(_Counts)


def counts_of(body: bytes) -> Tokens | None:
    """The token counts in one JSON answer or event of llama.cpp; None when it has none or is not JSON."""
    try:
        found = _counts.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    timings, usage = found.timings, found.usage
    if timings is not None and timings.cache_n is not None and timings.prompt_n is not None:
        return Tokens(
            prompt=timings.cache_n + timings.prompt_n,
            reused=timings.cache_n,
            output=timings.predicted_n,
            drafted=timings.draft_n,
            accepted=timings.draft_n_accepted,
            compute_s=timings.compute_s,
        )
    if usage is not None:
        details = usage.prompt_tokens_details
        return Tokens(
            prompt=usage.prompt_tokens,
            reused=details.cached_tokens if details else None,
            output=usage.completion_tokens,
        )
    return None


def _timings_of(body: bytes) -> _Timings | None:
    try:
        return _counts.decode(body).timings
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def error_status(payload: bytes) -> int:
    """HTTP status of an error that llama.cpp reported inside a stream; 500 where it names none."""
    try:
        code = _failures.decode(payload).error.code
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 500
    return code if 400 <= code < 600 else 500


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


class LlamaReply:
    """Implements `engines.engine.Reply`."""

    def __init__(
        self,
        *,
        engine: str,
        path: str,
        streamed: bool,
        joined: bool,
        wants_progress: bool,
        loaded_tokens: int,
        restore_s: float,
        queued_s: float,
        copies: int = 1,
        weighed: Weighed | None = None,
    ) -> None:
        """`streamed`: llama.cpp was asked for a stream; `joined`: its events become one answer, for a client that was
        not; `copies`: answers to each prompt.
        """
        self._copies = copies
        self._engine = engine
        self._path = path
        self._streamed = streamed
        self._joined = joined
        self._wants_progress = wants_progress
        self.loaded_tokens = loaded_tokens
        self.restore_s = restore_s
        self.weighed = weighed
        self.queued_s = queued_s
        self.status = 0
        self.content_type = "application/json"
        self._reused: int | None = None
        self._prompt: int | None = None
        self._pieces: deque[bytes] = deque(maxlen=_TAIL_CHUNKS if streamed else None)
        self._body: AsyncIterator[bytes] | None = None
        self._ahead: list[bytes] = []

    async def begin(self, response: StreamResponse) -> None:
        """Wait for the answer's head, and in a stream for the first event, which says what is reused."""
        self.status = response.status
        if self.status >= 400:
            await self._refuse(response)
            return
        if not self._streamed or self.status != 200:
            self.content_type = response.content_type
            self._body = response.chunks()
            self._joined = self._streamed = False
            return
        if not self._joined:
            self.content_type = response.content_type
        self._body = self._events(response)
        async for events in self._body:
            self._ahead.append(events)
            break

    async def _refuse(self, response: StreamResponse) -> None:
        body = bytearray()
        async for chunk in response.chunks():
            body += chunk
            if len(body) > _MAX_REFUSAL_BYTES:
                break
        self.status, shaped = in_openais_shape(self.status, bytes(body), path=self._path)
        self._joined = self._streamed = False
        self._ahead, self._body = [shaped], _nothing()

    async def _events(self, response: StreamResponse) -> AsyncIterator[bytes]:
        """Whole events; those that only report progress are taken out, an empty piece in place of the first."""
        splitter = EventSplitter(engine=self._engine)
        prefilling = True
        async for chunk in response.chunks():
            events = splitter.feed(chunk)
            if not events:
                continue
            if prefilling:
                if _PROGRESS in events:
                    known = self._reused is not None
                    events = self._read_progress(events)
                    if known and not events:
                        continue
                else:
                    prefilling = False
            yield events
        if splitter.rest:
            yield splitter.rest

    def _read_progress(self, events: bytes) -> bytes:
        kept = []
        for event in events.split(b"\n\n"):
            if not event:
                continue
            if _PROGRESS in event and (data := payloads(event + b"\n\n")):
                try:
                    progress = _progress.decode(data[0]).prompt_progress
                except msgspec.DecodeError:
                    kept.append(event)
                    continue
                self._reused, self._prompt = progress.cache, progress.total
                if not self._wants_progress:
                    continue
            kept.append(event)
        return b"".join(event + b"\n\n" for event in kept)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces as they come; of a stream, whole events."""
        if not self._joined:
            async for piece in self._passing():
                yield piece
            return
        whole = Aggregate(copies=self._copies)
        done = False
        async for events in self._passing():
            for payload in payloads(events):
                if payload == _DONE:
                    done = True
                else:
                    whole.add(payload)
        if whole.error is not None:
            self.status, shaped = in_openais_shape(error_status(whole.error), whole.error, path=self._path)
            yield shaped
        elif done:
            yield whole.body()
        else:
            raise EngineUnavailable("ended an answer before it was complete", engine=self._engine)

    async def _passing(self) -> AsyncIterator[bytes]:
        assert self._body is not None, "begin comes first"
        while self._ahead:
            if piece := self._ahead.pop(0):
                self._pieces.append(piece)
                yield piece
        async for piece in self._body:
            if piece:
                self._pieces.append(piece)
                yield piece

    @property
    def tokens(self) -> Tokens:
        """What is known by now."""
        for body in reversed(self._bodies()):
            if (found := counts_of(body)) is not None:
                return found
        return Tokens(prompt=self._prompt, reused=self._reused)

    @property
    def prefill(self) -> tuple[int, float]:
        """Tokens of the prompt that were computed, and the seconds it took; (0, 0.0) where the engine did not say."""
        for body in reversed(self._bodies()):
            if (timings := _timings_of(body)) is not None and timings.prompt_n and timings.prompt_ms:
                return timings.prompt_n, timings.prompt_ms / 1000
        return 0, 0.0

    def _bodies(self) -> list[bytes]:
        tail = b"".join(self._pieces)
        return payloads(tail) if self._streamed else [tail]

    def kept(self) -> bool:
        """Whether the slot still has the prefix that this request was given."""
        reused = self.tokens.reused
        return self.status == 200 and (reused is None or reused >= self.loaded_tokens - 1)
