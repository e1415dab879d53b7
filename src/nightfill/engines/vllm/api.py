"""vLLM's HTTP, typed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from nightfill.engines.engine import Sampled
from nightfill.engines.upstream import Upstream
from nightfill.engines.vllm.wire import NAME, PARAMS, Report, Wish
from nightfill.errors import EngineError, EngineRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from nightfill.engines.upstream import Response, StreamResponse

_JSON: Final = {"Content-Type": "application/json"}
_CALL_S: Final = 30.0
_MOVE_S: Final = 3600.0
_ADAPTER_S: Final = 120.0
_MESSAGE_CHARS: Final = 300
_TOPS: Final = 10
"""Log-probabilities at each place of a sample; vLLM gives up to 20 unless told otherwise."""
_ID_MARK: Final = "token_id:"
_BEHIND: Final = 10
"""Priority of background work; requests that say nothing have 0, and lower ones come first. A server without
`--scheduling-policy priority` passes it over.
"""

T = TypeVar("T")


class Model(msgspec.Struct):
    """A model that the server answers for."""

    id: str
    max_model_len: int | None = None
    parent: str | None = None
    """Of a LoRA adapter: the model that it adapts."""
    root: str | None = None
    """Where it was loaded from."""


class _Models(msgspec.Struct):
    data: list[Model]


class _Version(msgspec.Struct):
    version: str


class _Tokens(msgspec.Struct):
    tokens: tuple[int, ...]


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None


class _Completion(msgspec.Struct):
    usage: _Usage
    kv_transfer_params: dict[str, msgspec.Raw] | None = None


class _Logprobs(msgspec.Struct):
    top_logprobs: list[dict[str, float]]


class _Choice(msgspec.Struct):
    token_ids: tuple[int, ...]
    logprobs: _Logprobs


class _SampledCompletion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage
    kv_transfer_params: dict[str, msgspec.Raw] | None = None


class _Sleeping(msgspec.Struct):
    is_sleeping: bool


class _Status(msgspec.Struct):
    status: str


class _Results(msgspec.Struct):
    results: list[Any]


class _Reset(msgspec.Struct):
    success: bool


class _ErrorBody(msgspec.Struct):
    message: str = "no reason given"


class _Refusal(msgspec.Struct):
    error: _ErrorBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """What a completion of one token did."""

    prompt: int
    """Tokens of the prompt."""
    cached: int | None
    """Tokens of it that were not computed; None when the server does not tell."""
    report: Report | None
    """What our plug-in says; None when it was not asked, or is not there."""
    seconds: float

    @property
    def computed(self) -> int:
        """Tokens of the prompt that were computed."""
        return self.prompt - (self.cached or 0)


class VllmApi:
    """Calls on one vLLM server. Raises EngineUnavailable, EngineTimeout, EngineRefused. Coroutine-safe."""

    def __init__(
        self,
        url: str | Callable[[], str],
        *,
        engine: str,
        api_key: str = "",
        clock: Callable[[], float] = time.monotonic,
        first_byte_timeout_s: float = 900.0,
        idle_timeout_s: float = 300.0,
    ) -> None:
        """`url` as `Upstream` takes it. The time-outs are those of answers: to the first byte, and between two."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        self._upstream = Upstream(url, engine=engine, headers=headers)
        self._engine = engine
        self._clock = clock
        self._first_byte_timeout_s = first_byte_timeout_s
        self._idle_timeout_s = idle_timeout_s

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._upstream.aclose()

    async def health(self, *, timeout_s: float = 2.0) -> bool:
        """Whether it answers and its engine lives. False on any failure."""
        try:
            response = await self._upstream.request("GET", "/health", timeout_s=timeout_s)
        except EngineError:
            return False
        return response.status == 200

    async def version(self) -> str:
        """Of vLLM, such as `0.32.0`."""
        return (await self._get("/version", _Version)).version

    async def models(self) -> list[Model]:
        """What it serves; adapters come after the model that they adapt."""
        return (await self._get("/v1/models", _Models)).data

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of a completion's prompt."""
        return (await self._post("/tokenize", {"prompt": text}, _Tokens)).tokens

    async def tokenize_chat(
        self, messages: msgspec.Raw | Sequence[msgspec.Raw], extra: Mapping[str, msgspec.Raw] | None = None
    ) -> tuple[int, ...]:
        """Token ids of the prompt that a chat request with these messages has; `extra`: its other members (`tools`)."""
        return (await self._post("/tokenize", {**(extra or {}), "messages": messages}, _Tokens)).tokens

    async def prefill(
        self,
        tokens: Sequence[int],
        *,
        model: str | None = None,
        salt: bytes = b"",
        wish: Wish | None = None,
        behind: bool = True,
    ) -> Prefilled:
        """Compute the KV of `tokens`, at least one, and one token of an answer; `behind` all other requests.

        Cancelling closes the connection: the server stops at the end of the running step and keeps what it has.
        """
        body: dict[str, Any] = {"prompt": list(tokens), "max_tokens": 1, "temperature": 0}
        if behind:
            body["priority"] = _BEHIND
        if model is not None:
            body["model"] = model
        if salt:
            body["cache_salt"] = salt.hex()
        if wish is not None:
            body[PARAMS] = {NAME: wish}
        began_s = self._clock()
        done = await self._post("/v1/completions", body, _Completion, timeout_s=self._first_byte_timeout_s)
        seconds = self._clock() - began_s
        details = done.usage.prompt_tokens_details
        raw = (done.kv_transfer_params or {}).get(NAME)
        return Prefilled(
            prompt=done.usage.prompt_tokens,
            cached=details.cached_tokens if details is not None else None,
            report=self._decoded(raw, Report) if raw is not None else None,
            seconds=seconds,
        )

    async def sample(
        self, tokens: Sequence[int], *, model: str, salt: bytes, wish: Wish, max_tokens: int
    ) -> tuple[Sampled, Report | None]:
        """Continue `tokens` greedily, behind all other requests; `reused` is 0 where the server does not tell."""
        body = {
            "model": model,
            "prompt": list(tokens),
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": _TOPS,
            "ignore_eos": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "priority": _BEHIND,
            "cache_salt": salt.hex(),
            PARAMS: {NAME: wish},
        }
        done = await self._post("/v1/completions", body, _SampledCompletion, timeout_s=self._first_byte_timeout_s)
        details, raw = done.usage.prompt_tokens_details, (done.kv_transfer_params or {}).get(NAME)
        choice = done.choices[0]
        sampled = Sampled(
            tokens=choice.token_ids,
            tops=tuple(_by_id(tops) for tops in choice.logprobs.top_logprobs),
            reused=(details.cached_tokens or 0) if details is not None else 0,
        )
        return sampled, self._decoded(raw, Report) if raw is not None else None

    async def reset_caches(self) -> bool:
        """Have it forget its prefix cache and its host memory; False where it does not offer that, as is usual."""
        response = await self._upstream.request(
            "POST", "/reset_prefix_cache?reset_external=true", body=b"", headers=_JSON, timeout_s=_CALL_S
        )
        return response.status == 200

    async def load_adapter(self, name: str, path: str) -> None:
        """Have it load a LoRA adapter from a folder that it can read."""
        await self._adapter("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})

    async def unload_adapter(self, name: str) -> None:
        """Have it forget a LoRA adapter."""
        await self._adapter("/v1/unload_lora_adapter", {"lora_name": name})

    async def _adapter(self, path: str, body: Mapping[str, str]) -> None:
        encoded = msgspec.json.encode(body)
        self._checked(await self._upstream.request("POST", path, body=encoded, headers=_JSON, timeout_s=_ADAPTER_S))

    async def sleep(self, level: int) -> None:
        """Give up all KV, and the weights: at level 1 to the host's memory. Requests hang from then on. Of servers in
        development mode only, as are the calls below.
        """
        await self._move(f"/sleep?level={level}", _Status)

    async def is_sleeping(self) -> bool:
        """At any level."""
        return (await self._get("/is_sleeping", _Sleeping)).is_sleeping

    async def wake_up(self, tag: str = "") -> bool:
        """Take memory for `weights` or `kv_cache`, or for all, with the weights of level 1; whether it is awake now."""
        return (await self._move(f"/wake_up?tags={tag}" if tag else "/wake_up", _Status)).status == "awake"

    async def reload_weights(self) -> None:
        """Read them again, after level 2."""
        await self._move("/collective_rpc", _Results, {"method": "reload_weights"})

    async def reset_prefix_cache(self) -> bool:
        """Forget what is cached on the device; not what is stored outside. False while something still uses it."""
        return (await self._move("/reset_prefix_cache", _Reset)).success

    def stream(
        self, path: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[StreamResponse]:
        """Any POST of the server's, answered as it comes; see `Upstream.stream`. An error status is a stream too."""
        return self._upstream.stream(
            "POST",
            path,
            body=body,
            headers={**_JSON, **headers} if headers else _JSON,
            first_byte_timeout_s=self._first_byte_timeout_s,
            idle_timeout_s=self._idle_timeout_s,
        )

    async def _get(self, path: str, shape: type[T]) -> T:
        return self._decoded(self._checked(await self._upstream.request("GET", path, timeout_s=_CALL_S)).body, shape)

    async def _post(self, path: str, body: Mapping[str, Any], shape: type[T], *, timeout_s: float = _CALL_S) -> T:
        encoded = msgspec.json.encode(body)
        response = await self._upstream.request("POST", path, body=encoded, headers=_JSON, timeout_s=timeout_s)
        return self._decoded(self._checked(response).body, shape)

    async def _move(self, path: str, shape: type[T], body: Mapping[str, Any] | None = None) -> T:
        """A call that may take as long as weights take; whoever makes it bounds it."""
        return await self._post(path, body or {}, shape, timeout_s=_MOVE_S)

    def _decoded(self, body: bytes | msgspec.Raw, shape: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"answered in a shape that we do not know ({error})"
            raise EngineRefused(message, engine=self._engine, status=502) from error

    def _checked(self, response: Response) -> Response:
        if response.status != 200:
            try:
                reason = msgspec.json.decode(response.body, type=_Refusal).error
            except (msgspec.DecodeError, UnicodeDecodeError):
                reason = _ErrorBody()
            # A message may quote the request from its second line on, as validation errors do.
            first = reason.message.split("\n", 1)[0][:_MESSAGE_CHARS]
            raise EngineRefused(first, engine=self._engine, status=response.status)
        return response


def _by_id(tops: Mapping[str, float]) -> dict[int, float]:
    return {int(name.removeprefix(_ID_MARK)): value for name, value in tops.items()}
