"""A vLLM server, ours or one that runs elsewhere, to serve with or to fill with."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts import Front
from nightfill.contexts.context import Form, Signature
from nightfill.engines.difference import common_prefix, unlike_chats, unlike_prompts
from nightfill.engines.engine import Description, Reuse
from nightfill.engines.restores import Restores
from nightfill.engines.signature import adapted, signature_of
from nightfill.engines.vllm.adapters import Shelf
from nightfill.engines.vllm.api import VllmApi
from nightfill.engines.vllm.checks import fitting
from nightfill.engines.vllm.fill import VllmFill, whole
from nightfill.engines.vllm.reply import VllmReply
from nightfill.engines.vllm.sampler import VllmSampler
from nightfill.engines.vllm.wire import NAME, PARAMS, Wish
from nightfill.errors import EngineUnavailable, EngineUnfit
from nightfill.kv.key import spans
from nightfill.kv.worth import Rates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from nightfill.config import EngineSettings
    from nightfill.contexts.context import Content
    from nightfill.engines.adapted import Adapter
    from nightfill.engines.engine import Call, Prefix, PrefixFill, Sampler, Weighed
    from nightfill.engines.upstream import StreamResponse
    from nightfill.engines.vllm.api import Model
    from nightfill.engines.vllm.server import VllmServer
    from nightfill.kv.store import Store

DESCRIBED_S: Final = 30.0
"""A server may be started again as another one behind the same address; so it is asked again after so long."""
_PROBE: Final = (1, 2)
"""Token ids that every vocabulary has."""
_SLOTS: Final = 256
"""vLLM does not say how many requests it computes at the same time; this is its default."""
_CHAT: Final = "/v1/chat/completions"
_STREAMABLE: Final = frozenset({_CHAT, "/v1/completions"})
_WITHOUT_KV: Final = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})
_RENDERED_WITH: Final = ("tools", "chat_template", "chat_template_kwargs", "add_generation_prompt")
_RENDERED_OTHERWISE: Final = ("continue_final_message", "documents", "add_special_tokens", "tool_choice")
"""What else becomes part of a chat's prompt, as `/tokenize` is told of it, and as it is not."""
_OURS: Final = frozenset({"cache_salt", PARAMS})
"""Members that only we may set: they choose whose KV is used, and how."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class VllmEngine:
    """Implements `engines.engine.Engine`. For one event loop."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        store: Store,
        block_tokens: int,
        plugin: bool = True,
        always_restore: bool = False,
        first_byte_timeout_s: float = 900.0,
        idle_timeout_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        server: VllmServer | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        """`plugin`: ours must be inside. Without it the server keeps KV its own way, and nothing can be filled.

        `server`: where we started it; `settings` are its own then, and it ends with this.
        """
        self.name = settings.name
        self._plugin = plugin
        self.in_flight = 0
        """Requests that were sent to it and have not ended."""
        self._settings = settings
        self._server = server
        self._store = store
        self._block_tokens = block_tokens
        self._clock = clock
        self._api = VllmApi(
            settings.url if server is None else lambda: server.url,
            engine=settings.name,
            api_key=settings.api_key,
            first_byte_timeout_s=first_byte_timeout_s,
            idle_timeout_s=idle_timeout_s,
        )
        self._shelf = Shelf(
            adapters, api=self._api, engine=settings.name, most=settings.max_adapters, proves=self._computes_under
        )
        self._asked_for = settings.model
        self._description: Description | None = None
        self._described_at_s = 0.0
        self._engine_block_tokens = 0
        self._describing = asyncio.Lock()
        self._filling = asyncio.Lock()
        self._restores = Restores(always=always_restore)

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """That requests may be under."""
        return self._shelf.adapters

    async def describe(self) -> Description:
        """What it runs. Does not wait for a server that is not up. Raises EngineUnfit besides."""
        async with self._describing:
            if self._description is None or self._clock() - self._described_at_s > DESCRIBED_S:
                self._description = None
                self._description = await self._ask()
                self._described_at_s = self._clock()
            return self._description

    async def _ask(self) -> Description:
        name = self.name
        version = await self._api.version()
        models = await self._api.models()
        wanted = self._settings.model
        model = next((model for model in models if wanted in ("", model.id)), None)
        if model is None:
            raise EngineUnfit(f"does not serve {wanted!r}: --served-model-name must name it", engine=name)
        self._asked_for = model.id
        self._shelf.told(models)
        if not self._plugin:
            own = {"engine": "vllm", "name": name, "version": version, "model": model.id}
            return self._described_as(model, version, signature_of(own), kv_bytes_per_token=0, reuse=Reuse.NONE)
        probe = await self._api.prefill(_PROBE, model=model.id, wish=Wish(report=True, store=False))
        report = fitting(version, probe, block_tokens=self._block_tokens, engine=name)
        self._engine_block_tokens = report.engine_block_tokens
        self._restores.told(
            Rates(bytes_per_s=report.bytes_per_s, latency_s=report.latency_s, tokens_per_s=report.tokens_per_s)
        )
        return self._described_as(
            model, version, Signature(report.signature), kv_bytes_per_token=report.kv_bytes_per_token, reuse=Reuse.TRIM
        )

    async def _computes_under(self, model: str, adapter: Adapter) -> bool:
        """Whether the plug-in found this adapter's content behind the name, and nothing that is for another model."""
        if not self._plugin:
            return True
        wanted = adapted((await self.describe()).signature, digest=adapter.digest)
        probe = await self._api.prefill(_PROBE, model=model, wish=Wish(report=True, store=False), behind=False)
        return probe.report is not None and probe.report.signature == wanted

    def _described_as(
        self, model: Model, version: str, signature: Signature, *, kv_bytes_per_token: int, reuse: Reuse
    ) -> Description:
        return Description(
            engine=self.name,
            model=self._settings.served_model_name or model.id,
            signature=signature,
            context_length=model.max_model_len or 0,
            kv_bytes_per_token=kv_bytes_per_token,
            slots=_SLOTS,
            reuse=reuse,
            embeddings=False,
            version=f"vLLM {version}",
        )

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of a completion's prompt."""
        return await self._api.tokenize(text)

    async def prefix_tokens(self, content: Content, form: Form) -> tuple[int, ...]:
        """Token ids that every request with this context in front starts with, cut to whole blocks."""
        front = Front(content)
        if form is Form.COMPLETION:
            rows = [await self._api.tokenize(prompt) for prompt in unlike_prompts(front)]
        else:
            rows = [await self._api.tokenize_chat(messages) for messages in unlike_chats(front)]
        shared = common_prefix(rows)
        return shared[: whole(len(shared), self._block_tokens)]

    def open(self, call: Call) -> AbstractAsyncContextManager[VllmReply]:
        """Send a request on. vLLM loads what is stored of its prompt by itself."""
        return self.opened(call)

    @contextlib.asynccontextmanager
    async def opened(self, call: Call, wish: Wish | None = None) -> AsyncIterator[VllmReply]:
        """`open`, with what the request wants of the store; one that is to be computed anew wants nothing of it."""
        weighed: Weighed | None = None
        if not call.reuse:
            wish = Wish(cold=True, store=False)
        elif call.prefix is not None:
            # Decided here, so that what is promised is what the server is asked to do.
            weighed = self._weigh(call.prefix)
            wish = msgspec.structs.replace(wish or Wish(store=False), load=weighed.load)
        promised = len(call.prefix.tokens) if call.prefix is not None and weighed is not None and weighed.load else 0
        streamed = call.stream and call.path in _STREAMABLE
        hides_usage = streamed and not _wants_usage(call)
        self.in_flight += 1
        try:
            async with self._answered(call, wish, streamed) as response:
                yield VllmReply(
                    response,
                    engine=self.name,
                    streamed=streamed,
                    hides_usage=hides_usage,
                    loaded_tokens=promised,
                    weighed=weighed,
                )
        except EngineUnavailable:
            self._description = None  # what comes back may be another one
            raise
        finally:
            self.in_flight -= 1

    @contextlib.asynccontextmanager
    async def _answered(self, call: Call, wish: Wish | None, streamed: bool) -> AsyncIterator[StreamResponse]:
        if not call.adapter:
            body = self._body(call, wish, streamed, model=self._asked_for)
            async with self._api.stream(call.path, body, headers=call.headers) as response:
                yield response
            return
        async with self._shelf.use(call.adapter) as model:
            body = self._body(call, wish, streamed, model=model)
            async with self._api.stream(call.path, body, headers=call.headers) as response:
                if response.status != 404:
                    yield response
                    return
            self._shelf.gone(call.adapter)
        # It was started again, or somebody else has unloaded the adapter.
        async with (
            self._shelf.use(call.adapter) as model,
            self._api.stream(call.path, body, headers=call.headers) as response,
        ):
            yield response

    def _weigh(self, prefix: Prefix) -> Weighed:
        """Loading what is stored of a prefix against computing it, by the rates that the server measured."""
        tokens = len(prefix.tokens)
        per_token = self._description.kv_bytes_per_token if self._description is not None else 0
        return self._restores.weigh(load_bytes=tokens * per_token, missing_tokens=tokens)

    def _body(self, call: Call, wish: Wish | None, streamed: bool, *, model: str) -> bytes:
        body: dict[str, object] = {name: raw for name, raw in call.body.items() if name not in _OURS}
        if call.adapter or (model and "model" in body):
            body["model"] = model
        if call.path not in _WITHOUT_KV:
            if call.salt:
                body["cache_salt"] = call.salt.hex()
            if wish is not None:
                body[PARAMS] = {NAME: wish}
        if streamed:
            options = msgspec.json.decode(call.body.get("stream_options", b"null"), type=dict[str, msgspec.Raw] | None)
            body["stream_options"] = {**(options or {}), "include_usage": True}
        return msgspec.json.encode(body)

    async def prompt_tokens(self, path: str, body: Mapping[str, msgspec.Raw]) -> tuple[int, ...] | None:
        """Token ids of the one prompt that a request has; None for several prompts, and for what is no plain text."""
        if path == _CHAT:
            if any(name in body for name in _RENDERED_OTHERWISE) or b"_url" in bytes(body["messages"]):
                return None
            return await self._api.tokenize_chat(body["messages"], {n: body[n] for n in _RENDERED_WITH if n in body})
        try:
            prompt = msgspec.json.decode(body["prompt"], type=str | tuple[int, ...])
        except msgspec.ValidationError:
            return None
        return await self._api.tokenize(prompt) if isinstance(prompt, str) else prompt

    async def prefill(self, tokens: Sequence[int], *, salt: bytes) -> None:
        """Compute a prompt before live requests, and have its whole blocks stored; they may arrive a little later."""
        self.in_flight += 1
        try:
            await self._api.prefill(tokens, salt=salt, wish=Wish(), behind=False)
        finally:
            self.in_flight -= 1

    def near(self, prefix: Prefix) -> None:
        """vLLM does not say what is in its cache."""

    @contextlib.asynccontextmanager
    async def fill(self, prefix: Prefix) -> AsyncIterator[PrefixFill]:
        """Begin a fill; waits for the one before to end. `prefix` is as `prefix_tokens` gave it: whole blocks."""
        description = await self.describe()
        signature = description.signature
        if prefix.adapter:
            signature = adapted(signature, digest=self._shelf.digest_of(prefix.adapter))
        async with self._filling, self._model_of(prefix) as model:
            yield VllmFill(
                prefix,
                api=self._api,
                store=self._store,
                spans=spans(prefix.tokens, signature=signature, salt=prefix.salt, block_tokens=self._block_tokens),
                slice_unit=self._engine_block_tokens,
                model=model,
            )

    @contextlib.asynccontextmanager
    async def sampler(self, prefix: Prefix) -> AsyncIterator[Sampler]:
        """Compare on the server; waits for a fill to end."""
        await self.describe()
        async with self._filling, self._model_of(prefix) as model:
            yield VllmSampler(prefix, api=self._api, model=model, block_tokens=self._block_tokens)

    @contextlib.asynccontextmanager
    async def _model_of(self, prefix: Prefix) -> AsyncIterator[str]:
        """What to ask the server for."""
        if not prefix.adapter:
            yield self._asked_for
            return
        async with self._shelf.use(prefix.adapter) as model:
            yield model

    @property
    def freezes(self) -> bool:
        """A server elsewhere cannot be stopped where it stands."""
        return False

    def freeze(self) -> None:
        """Does nothing."""

    def thaw(self) -> None:
        """Does nothing."""

    async def healthy(self) -> bool:
        """Whether it answers."""
        return await self._api.health()

    async def aclose(self) -> None:
        """Close the connections. A server that runs elsewhere stays, one of ours ends."""
        await self._api.aclose()
        if self._server is not None:
            await self._server.aclose()


def _wants_usage(call: Call) -> bool:
    options = msgspec.json.decode(call.body.get("stream_options", b"null"), type=_StreamOptions | None)
    return options is not None and bool(options.include_usage)
