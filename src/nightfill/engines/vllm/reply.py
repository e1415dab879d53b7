"""An answer of vLLM under way: its bytes passed on as they are, its token counts read in passing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.engines.engine import Tokens
from nightfill.engines.sse import EventSplitter, payloads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from nightfill.engines.engine import Weighed
    from nightfill.engines.upstream import StreamResponse

_USAGE: Final = b'"usage"'
"""Inside a string of the answer its quotes would be escaped."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Speculation(msgspec.Struct):
    num_draft_tokens: int | None = None
    num_accepted_draft_tokens: int | None = None


class _Metrics(msgspec.Struct):
    """Of one request; where the server was started with `--enable-per-request-metrics`, or for speculation with
    `--per-request-spec-decode-metrics`.
    """

    time_to_first_token_ms: float | None = None
    """From its first step on: the prompt's computation, without the waiting line."""
    generation_time_ms: float | None = None
    speculative_decoding: _Speculation | None = None

    @property
    def compute_s(self) -> float | None:
        if self.time_to_first_token_ms is None or self.generation_time_ms is None:
            return None
        return (self.time_to_first_token_ms + self.generation_time_ms) / 1000


class _Counts(msgspec.Struct):
    usage: _Usage | None = None
    metrics: _Metrics | None = None
    choices: list[msgspec.Raw] | None = None


_counts = msgspec.json.Decoder(_Counts)


def _decoded(payload: bytes) -> _Counts:
    """The part of an answer or event that we read; nothing when it is of another shape."""
    try:
        return _counts.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Counts()


def _tokens(usage: _Usage, metrics: _Metrics) -> Tokens:
    details = usage.prompt_tokens_details
    speculation = metrics.speculative_decoding or _Speculation()
    return Tokens(
        prompt=usage.prompt_tokens,
        reused=details.cached_tokens if details is not None else None,
        output=usage.completion_tokens,
        drafted=speculation.num_draft_tokens,
        accepted=speculation.num_accepted_draft_tokens,
        compute_s=metrics.compute_s,
    )


class VllmReply:
    """Implements `engines.engine.Reply`."""

    def __init__(
        self,
        response: StreamResponse,
        *,
        engine: str,
        streamed: bool,
        hides_usage: bool,
        loaded_tokens: int,
        weighed: Weighed | None = None,
    ) -> None:
        """`hides_usage`: the last event, with the counts alone, was asked for by us and not by the client."""
        self._response = response
        self._engine = engine
        self._streamed = streamed and response.status == 200
        self._hides_usage = hides_usage
        self.status = response.status
        self.content_type = response.content_type
        self.loaded_tokens = loaded_tokens
        self.restore_s = 0.0
        """vLLM loads beside other work, and does not tell how long it took."""
        self.weighed = weighed
        self.queued_s = 0.0
        self.tokens = Tokens()

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body in pieces as they come; of a stream, whole events."""
        if not self._streamed:
            pieces = []
            async for piece in self._response.chunks():
                pieces.append(piece)
                yield piece
            self._note(_decoded(b"".join(pieces)))
            return
        splitter = EventSplitter(engine=self._engine)
        async for chunk in self._response.chunks():
            events = splitter.feed(chunk)
            if _USAGE in events:
                events = self._read(events)
            if events:
                yield events
        if splitter.rest:
            yield splitter.rest

    def _read(self, events: bytes) -> bytes:
        """Note the counts in some of `events`; all of them but what is hidden."""
        kept = []
        for event in events.split(b"\n\n"):
            if not event:
                continue
            if _USAGE in event and (data := payloads(event + b"\n\n")):
                counts = _decoded(data[0])
                self._note(counts)
                if self._hides_usage and counts.usage is not None and counts.choices == []:
                    continue
            kept.append(event)
        return b"".join(event + b"\n\n" for event in kept)

    def _note(self, counts: _Counts) -> None:
        if counts.usage is not None:
            self.tokens = _tokens(counts.usage, counts.metrics or _Metrics())
            if self.tokens.prompt is not None and self.tokens.prompt <= self.loaded_tokens:
                # vLLM must compute something of a prompt that it holds whole, and computes a block of its own cache,
                # whose length it does not say: such a request neither keeps the promise nor breaks it.
                self.tokens = replace(self.tokens, reused=None)
