"""llama-server's HTTP, typed."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from nightfill.engines.engine import Sampled
from nightfill.engines.llama.lora import NO_LORA
from nightfill.engines.sse import EventSplitter, payloads
from nightfill.engines.upstream import Upstream
from nightfill.errors import EngineError, EngineRefused, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from nightfill.engines.llama.lora import Lora
    from nightfill.engines.llama.process import LlamaProcess
    from nightfill.engines.upstream import Response, StreamResponse

_JSON: Final = {"Content-Type": "application/json"}
# After a streamed answer the server closes the connection, though it announced to keep it: reusing it meets a reset.
_STREAMED: Final = {**_JSON, "Connection": "close"}
_CALL_S: Final = 30.0
_SLOT_S: Final = 120.0
"""Saving, restoring and erasing wait for the slot, and for the batch being computed."""
_MESSAGE_CHARS: Final = 300
_TOPS: Final = 10
"""Log-probabilities at each place of a sample."""

T = TypeVar("T")


class _Defaults(msgspec.Struct):
    n_ctx: int = 0


class Props(msgspec.Struct):
    """What the server says of itself."""

    total_slots: int
    model_alias: str = ""
    model_path: str = ""
    model_ftype: str = ""
    chat_template: str = ""
    bos_token: str = ""
    eos_token: str = ""
    build_info: str = ""
    default_generation_settings: _Defaults = msgspec.field(default_factory=_Defaults)

    @property
    def slot_tokens(self) -> int:
        """Tokens that one request may have, prompt and answer together."""
        return self.default_generation_settings.n_ctx

    @property
    def has_chat_template(self) -> bool:
        """Whether the model brings a chat template of its own."""
        return bool(self.chat_template)


class SlotState(msgspec.Struct):
    """One slot, as `/slots` shows it."""

    id: int
    n_ctx: int
    is_processing: bool
    n_prompt_tokens: int = 0
    n_prompt_tokens_processed: int = 0
    n_prompt_tokens_cache: int = 0


class Saved(msgspec.Struct):
    """A slot's KV was written to a file."""

    tokens: int = msgspec.field(name="n_saved")
    bytes: int = msgspec.field(name="n_written")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """What a prefill did."""

    cached: int
    """Tokens whose KV the slot already held."""
    computed: int
    seconds: float
    """Of the engine's time: the clock given to `LlamaApi`, so that pauses do not count."""


class _Restored(msgspec.Struct):
    n_restored: int


class _Tokens(msgspec.Struct):
    tokens: tuple[int, ...]


class _Prompt(msgspec.Struct):
    prompt: str


class _ErrorBody(msgspec.Struct):
    message: str = "no reason given"
    code: int = 500


class _Refusal(msgspec.Struct):
    error: _ErrorBody


class _Progress(msgspec.Struct):
    total: int
    cache: int
    processed: int


class _Timings(msgspec.Struct):
    cache_n: int
    prompt_n: int


class _Likely(msgspec.Struct):
    id: int
    logprob: float


class _Chosen(msgspec.Struct):
    id: int
    logprob: float
    top_logprobs: list[_Likely] = []


class _Word(msgspec.Struct):
    """One event of a streamed completion."""

    completion_probabilities: list[_Chosen] = []
    timings: _Timings | None = None
    stop: bool = False
    error: _ErrorBody | None = None


class _Step(msgspec.Struct):
    """One event of a streamed prefill."""

    prompt_progress: _Progress | None = None
    timings: _Timings | None = None
    stop: bool = False
    error: _ErrorBody | None = None


class LlamaApi:
    """Calls on one llama-server. Raises EngineUnavailable, EngineTimeout, EngineRefused. Coroutine-safe."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        slots: int,
        clock: Callable[[], float] = time.monotonic,
        first_byte_timeout_s: float = 900.0,
        idle_timeout_s: float = 300.0,
    ) -> None:
        """`upstream` carries the key in its headers; `slots` is the server's number of them.

        The time-outs are those of streams: to the first byte, and between two of them.
        """
        self._upstream = upstream
        self._slots = slots
        self._clock = clock
        self._first_byte_timeout_s = first_byte_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._lora = NO_LORA

    @classmethod
    def of(
        cls, process: LlamaProcess, *, first_byte_timeout_s: float = 900.0, idle_timeout_s: float = 300.0
    ) -> LlamaApi:
        """For a child of ours, wherever it listens at the time; while it is frozen, no deadline comes nearer."""
        upstream = Upstream(
            lambda: process.url,
            engine=process.name,
            headers={"Authorization": f"Bearer {process.api_key}"},
            clock=process.clock,
        )
        return cls(
            upstream,
            slots=process.slots,
            clock=process.clock,
            first_byte_timeout_s=first_byte_timeout_s,
            idle_timeout_s=idle_timeout_s,
        )

    def under(self, lora: Lora) -> LlamaApi:
        """The same server, its `prefill` and `sample` under these adapters."""
        other = copy.copy(self)
        other._lora = lora
        return other

    def drop_idle(self) -> None:
        """Close the connections that are kept for later calls."""
        self._upstream.drop_idle()

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._upstream.aclose()

    async def health(self, *, timeout_s: float = 2.0) -> bool:
        """Whether it answers and its model is loaded. False on any failure."""
        try:
            response = await self._upstream.request("GET", "/health", timeout_s=timeout_s)
        except EngineError:
            return False
        return response.status == 200

    async def props(self) -> Props:
        """What it runs."""
        return await self._get("/props", Props)

    async def slots(self) -> list[SlotState]:
        """The state of each slot."""
        return await self._get("/slots", list[SlotState])

    async def metrics_text(self) -> str:
        """Its Prometheus metrics."""
        return (self._checked(await self._upstream.request("GET", "/metrics", timeout_s=_CALL_S))).body.decode()

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> tuple[int, ...]:
        """Token ids of `text`; `parse_special` reads `<|im_start|>` and its like as the tokens they name."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return (await self._post("/tokenize", body, _Tokens, timeout_s=_SLOT_S)).tokens

    async def apply_template(
        self, messages: msgspec.Raw | Sequence[msgspec.Raw], extra: Mapping[str, Any] | None = None
    ) -> str:
        """The prompt that a chat request with these messages would have; `extra` holds its other fields (`tools`)."""
        return (await self._post("/apply-template", {**(extra or {}), "messages": messages}, _Prompt)).prompt

    async def slot_save(self, slot: int, filename: str) -> Saved:
        """Write a slot's KV to `filename` in the slot folder, in place: on an error it may be cut short."""
        return await self._post(self._action(slot, "save"), {"filename": filename}, Saved, timeout_s=_SLOT_S)

    async def slot_restore(self, slot: int, filename: str) -> int:
        """Replace a slot's KV by that of a file; the tokens restored. An error leaves the slot empty."""
        path = self._action(slot, "restore")
        return (await self._post(path, {"filename": filename}, _Restored, timeout_s=_SLOT_S)).n_restored

    async def slot_erase(self, slot: int) -> None:
        """Forget a slot's KV."""
        await self._post(self._action(slot, "erase"), {}, dict[str, Any], timeout_s=_SLOT_S)

    async def prefill(
        self,
        tokens: Sequence[int],
        *,
        slot: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Prefilled:
        """Compute the KV of `tokens` in a slot, from where its content agrees with them.

        `on_progress(processed, total)` is called after each batch, cached tokens included. Cancelling closes the
        connection: the server stops within one batch and keeps what it has.
        """
        body = {
            "prompt": tokens,
            "id_slot": self._checked_slot(slot),
            "n_predict": 0,
            "temperature": 0,
            "cache_prompt": True,
            # Only while it writes progress does the server notice dependably that we have left.
            "stream": True,
            "return_progress": True,
            # Without it the last event repeats the whole prompt as text.
            "response_fields": ["timings", "stop"],
            **self._lora.members,
        }
        began_s = self._clock()
        splitter = EventSplitter(engine=self._upstream.engine)
        async with self.stream("/completion", msgspec.json.encode(body)) as stream:
            if stream.status != 200:
                raise self._refusal(stream.status, b"".join([chunk async for chunk in stream.chunks()]))
            async for chunk in stream.chunks():
                for payload in payloads(splitter.feed(chunk)):
                    step = self._decoded(payload, _Step)
                    if step.error is not None:
                        raise self._refused(step.error, step.error.code)
                    if step.prompt_progress is not None and on_progress is not None:
                        on_progress(step.prompt_progress.processed, step.prompt_progress.total)
                    if step.timings is not None:
                        done = step.timings
                        seconds = self._clock() - began_s
                        self._lora.check()
                        return Prefilled(cached=done.cache_n, computed=done.prompt_n, seconds=seconds)
        raise EngineUnavailable("ended a prefill before it was done", engine=self._upstream.engine)

    async def sample(self, tokens: Sequence[int], *, slot: int, max_tokens: int) -> Sampled:
        """Continue `tokens` greedily in a slot, from where its content agrees with them. Cancelling as `prefill`."""
        body = {
            "prompt": tokens,
            "id_slot": self._checked_slot(slot),
            "n_predict": max_tokens,
            "temperature": 0,
            "n_probs": _TOPS,
            "ignore_eos": True,
            "cache_prompt": True,
            "stream": True,
            "return_progress": True,
            "response_fields": ["timings", "stop"],
            **self._lora.members,
        }
        chosen: list[_Chosen] = []
        splitter = EventSplitter(engine=self._upstream.engine)
        async with self.stream("/completion", msgspec.json.encode(body)) as stream:
            if stream.status != 200:
                raise self._refusal(stream.status, b"".join([chunk async for chunk in stream.chunks()]))
            async for chunk in stream.chunks():
                for payload in payloads(splitter.feed(chunk)):
                    word = self._decoded(payload, _Word)
                    if word.error is not None:
                        raise self._refused(word.error, word.error.code)
                    chosen += word.completion_probabilities
                    if word.stop and word.timings is not None:
                        self._lora.check()
                        return Sampled(
                            tokens=tuple(one.id for one in chosen),
                            tops=tuple(_tops(one) for one in chosen),
                            reused=word.timings.cache_n,
                        )
        raise EngineUnavailable("ended an answer before it was complete", engine=self._upstream.engine)

    def stream(
        self,
        path: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[StreamResponse]:
        """Any POST of the server's, answered as it comes; see `Upstream.stream`. An error status is a stream too."""
        return self._upstream.stream(
            "POST",
            path,
            body=body,
            headers={**_STREAMED, **(headers or {})},
            first_byte_timeout_s=self._first_byte_timeout_s,
            idle_timeout_s=self._idle_timeout_s,
        )

    def _checked_slot(self, slot: int) -> int:
        if not 0 <= slot < self._slots:  # llama.cpp takes it modulo their number: another one's slot
            raise EngineRefused(
                f"slot {slot} is not one of 0 to {self._slots - 1}", engine=self._upstream.engine, status=404
            )
        return slot

    def _action(self, slot: int, action: str) -> str:
        return f"/slots/{self._checked_slot(slot)}?action={action}"

    async def _get(self, path: str, shape: type[T]) -> T:
        return self._decoded(self._checked(await self._upstream.request("GET", path, timeout_s=_CALL_S)).body, shape)

    async def _post(self, path: str, body: Mapping[str, Any], shape: type[T], *, timeout_s: float = _CALL_S) -> T:
        response = await self._upstream.request(
            "POST",
            path,
            body=msgspec.json.encode(body),
            headers=_JSON,
            timeout_s=timeout_s,
        )
        return self._decoded(self._checked(response).body, shape)

    def _decoded(self, body: bytes, shape: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=shape)
        except msgspec.DecodeError as error:
            message = f"answered in a shape that we do not know ({error})"
            raise EngineRefused(message, engine=self._upstream.engine, status=502) from error

    def _checked(self, response: Response) -> Response:
        if response.status != 200:
            raise self._refusal(response.status, response.body)
        return response

    def _refusal(self, status: int, body: bytes) -> EngineRefused:
        try:
            reason = msgspec.json.decode(body, type=_Refusal).error
        except msgspec.DecodeError:
            reason = _ErrorBody()
        return self._refused(reason, status)

    def _refused(self, reason: _ErrorBody, status: int) -> EngineRefused:
        return EngineRefused(without_quotes(reason.message), engine=self._upstream.engine, status=status)


def _tops(chosen: _Chosen) -> dict[int, float]:
    return {chosen.id: chosen.logprob} | {likely.id: likely.logprob for likely in chosen.top_logprobs}


def without_quotes(message: str) -> str:
    """llama.cpp's message as far as it cannot quote a request: its first line, up to where it begins to cite JSON."""
    first = message.split("\n", 1)[0]
    for mark in ("last read:", "{", "["):
        head, found, _ = first.partition(mark)
        if found and head.strip():
            first = head
    return first.strip(" ;:-")[:_MESSAGE_CHARS]
