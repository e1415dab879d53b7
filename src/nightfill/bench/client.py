"""Asking one OpenAI-compatible address, with a clock in hand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from nightfill.bench.query import Sample, salt_line
from nightfill.engines.sse import EventSplitter, payloads
from nightfill.engines.upstream import Upstream
from nightfill.errors import EngineError, EngineRefused, NightfillError, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import TracebackType
    from typing import Self

    from nightfill.bench.query import Query

Record = TypeVar("Record")
_NAME: Final = "under test"
_ERROR_BODY_BYTES: Final = 64 << 10
_ERROR_CHARS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server to measure and the context to ask it about: named, or sent whole with each query."""

    url: str
    """With or without the `/v1` at its end."""
    model: str = ""
    """Empty for the first one that the server lists."""
    context: str = ""
    """Name of a context; only a nightfill server knows what it means."""
    prompt: str = ""
    """The whole text to ask about, for any server."""
    max_tokens: int = 8
    api_key: str = field(default="", repr=False)
    first_byte_timeout_s: float = 900.0
    idle_timeout_s: float = 300.0

    @property
    def base_url(self) -> str:
        """The address without `/v1`."""
        return self.url.rstrip("/").removesuffix("/v1")


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _CachedTokens | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Fill(msgspec.Struct):
    form: str
    state: str
    stored_tokens: int
    tokens: int
    fill_seconds: float


class _Context(msgspec.Struct):
    bytes: int = 0
    fills: list[_Fill] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class FillSeen:
    """What a nightfill server says of its context's fill for chats, before it is asked about it."""

    state: str
    """`absent`, `filling`, `ready`, `stale` or `evicted`."""
    stored_tokens: int
    tokens: int
    """Of the whole context; 0 if nobody counted them yet."""
    fill_s: float
    """Engine seconds that it took so far."""
    bytes: int = 0
    """Of the context's text."""


class Client:
    """One connection pool to the server under test. Use as an async context manager; any number of tasks may ask."""

    def __init__(self, target: Target, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.target = target
        self._clock = clock
        self._upstream = Upstream(target.base_url, engine=_NAME)
        self._events = msgspec.json.Decoder(_Event)
        self._headers = {"content-type": "application/json", "accept": "text/event-stream"}
        if target.api_key:
            self._headers["authorization"] = f"Bearer {target.api_key}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._upstream.aclose()

    async def choose_model(self) -> str:
        """The target's model; when it names none, the first that the server lists, used from now on.

        Raises EngineError when the server cannot be asked, NotFound when it has no model.
        """
        if not self.target.model:
            listed = await self._get("/v1/models", _Models)
            if not listed.data:
                raise NotFound(f"{self.target.base_url} lists no model", param="model")
            self.target = replace(self.target, model=listed.data[0].id)
        return self.target.model

    async def fill_seen(self) -> FillSeen:
        """What the server says of the target's context. EngineRefused: it knows no such one."""
        known = await self._get(f"/v1/nightfill/contexts/{quote(self.target.context, safe='')}", _Context)
        fills = [fill for fill in known.fills if fill.form == "chat"]
        if not fills:
            return FillSeen(state="absent", stored_tokens=0, tokens=0, fill_s=0.0, bytes=known.bytes)
        best = max(fills, key=lambda fill: (fill.state == "ready", fill.stored_tokens))
        return FillSeen(
            state=best.state,
            stored_tokens=best.stored_tokens,
            tokens=best.tokens,
            fill_s=best.fill_seconds,
            bytes=known.bytes,
        )

    async def _get(self, path: str, record: type[Record]) -> Record:
        answer = await self._upstream.request("GET", path, headers=self._headers)
        if answer.status != 200:
            raise EngineRefused(
                f"GET {path}: HTTP {answer.status}: {_reason(answer.body)}", engine=_NAME, status=answer.status
            )
        try:
            return msgspec.json.decode(answer.body, type=record)
        except msgspec.DecodeError as exc:
            raise EngineError(f"GET {path}: not what was expected: {exc}", engine=_NAME) from exc

    async def ask(self, query: Query, due_s: float) -> Sample:
        """Ask one question that was due at `due_s` of this client's clock. A failure is in the sample, never raised."""
        reading = _Reading()
        error = ""
        try:
            async with self._upstream.stream(
                "POST",
                "/v1/chat/completions",
                body=msgspec.json.encode(self._body(query)),
                headers=self._headers,
                first_byte_timeout_s=self.target.first_byte_timeout_s,
                idle_timeout_s=self.target.idle_timeout_s,
            ) as reply:
                reading.status = reply.status
                reading.headers = reply.headers
                if reply.status == 200:
                    await self._read(reply.chunks(), reading)
                    error = reading.verdict()
                else:
                    error = f"HTTP {reply.status}: {_reason(await _head(reply.chunks()))}"
        except NightfillError as exc:
            error = str(exc)
        return reading.sample(query, due_s=due_s, end_s=self._clock(), error=error)

    def _body(self, query: Query) -> dict[str, Any]:
        target = self.target
        salt = salt_line() if query.cold and not target.context else ""
        content = f"{salt}{target.prompt}\n\n{query.question}" if target.prompt else f"{salt}{query.question}"
        body: dict[str, Any] = {
            "model": target.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": target.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if target.context:
            body["nightfill"] = {"context": target.context} | ({"skip": ["fill"]} if query.cold else {})
        return body

    async def _read(self, chunks: AsyncIterator[bytes], reading: _Reading) -> None:
        splitter = EventSplitter(engine=_NAME)
        async for chunk in chunks:
            now_s = self._clock()
            for data in payloads(splitter.feed(chunk)):
                if data == b"[DONE]":
                    reading.whole = True
                    continue
                try:
                    reading.take(self._events.decode(data), now_s)
                except msgspec.DecodeError as exc:
                    raise EngineError(f"sent an event that is not OpenAI's: {exc}", engine=_NAME) from exc


@dataclass(slots=True)
class _Reading:
    """What has been seen of a reply so far."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    first_text_s: float | None = None
    finished: bool = False
    whole: bool = False
    error: str = ""
    usage: _Usage | None = None

    def take(self, event: _Event, now_s: float) -> None:
        if event.error is not None:
            self.error = _message(event.error)
        for choice in event.choices:
            delta = choice.delta
            if self.first_text_s is None and delta is not None and (delta.content or delta.reasoning_content):
                self.first_text_s = now_s
            self.finished = self.finished or choice.finish_reason is not None
        self.usage = event.usage or self.usage

    def verdict(self) -> str:
        if self.error:
            return f"the stream says: {self.error}"
        return "" if self.finished or self.whole else "the stream ended before its reply did"

    def sample(self, query: Query, *, due_s: float, end_s: float, error: str) -> Sample:
        usage = self.usage or _Usage()
        details = usage.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        first_s = self.first_text_s if self.first_text_s is not None or error else end_s
        return Sample(
            index=query.index,
            due_s=due_s,
            ttft_s=None if first_s is None else first_s - due_s,
            total_s=end_s - due_s,
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cached_tokens=cached if cached is not None else _count(self.headers.get("x-nightfill-reused-tokens")),
            layer=self.headers.get("x-nightfill-layer", ""),
            status=self.status,
            error=error,
        )


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


async def _head(chunks: AsyncIterator[bytes]) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) >= _ERROR_BODY_BYTES:
            break
    return bytes(body[:_ERROR_BODY_BYTES])


def _reason(body: bytes) -> str:
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.DecodeError:
        decoded = None
    return _message(decoded.get("error") if isinstance(decoded, dict) else None)


def _message(error: Any) -> str:
    """The message of an OpenAI error, bounded. Nothing of anything else, for it could hold a prompt."""
    message = error.get("message") if isinstance(error, dict) else error
    return message[:_ERROR_CHARS] if isinstance(message, str) else "no OpenAI error with it"
