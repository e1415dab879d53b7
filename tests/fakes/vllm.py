"""vLLM's HTTP surface on loopback, with our plug-in inside: tokens are bytes, KV is the text that it stands for."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from nightfill.contexts.context import Signature
from nightfill.engines.signature import adapted
from nightfill.engines.vllm.adapter_identity import adapter_digest
from nightfill.engines.vllm.wire import NAME, PARAMS, Report, Wish
from nightfill.kv.block import BlockMeta
from nightfill.kv.key import spans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nightfill.kv.key import Span
    from nightfill.kv.store import Store

SIGNATURE = Signature("7" * 64)
ENGINE_BLOCK = 4
"""Tokens per block of the engine's own prefix cache."""


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@dataclass
class FakeVllm:
    """One server. `store` is what the plug-in stores into; None for a server without it."""

    store: Store | None = None
    version: str = "0.32.0"
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "demo", "max_model_len": 4096}])
    block_tokens: int = 32
    signature: Signature = SIGNATURE
    tells_cached: bool = True
    stores: bool = True
    """Whether what is computed gets into the store."""
    loads: bool = True
    hold: asyncio.Event | None = None
    """While it is there and not set, requests wait before they compute."""
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    rates: dict[str, Any] = field(default_factory=dict)
    """What its reports say of loads and prefill."""
    dies_after: int | None = None
    """Events of a stream after which the connection breaks."""
    takes_adapters: bool = True
    refuses_adapters: str = ""
    """What it says of each that it is to load, if anything."""
    mistakes_adapters: bool = False
    """What it computes under them is not what they are."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Paths of those that are loaded, by name."""
    moves: list[str] = field(default_factory=list)
    """Names of adapters as they were loaded, and `-` with the name as they were unloaded."""
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    """Tokens computed by each request."""
    url: str = ""
    _cache: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[FakeVllm]:
        app = web.Application(client_max_size=64 << 20)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/version", self._version),
                web.get("/v1/models", self._models),
                web.post("/tokenize", self._tokenize),
                web.post("/v1/completions", self._answer),
                web.post("/v1/load_lora_adapter", self._load_adapter),
                web.post("/v1/unload_lora_adapter", self._unload_adapter),
                web.post("/v1/chat/completions", self._answer),
            ]
        )
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        host, bound = runner.addresses[0][:2]
        self.url = f"http://{host}:{bound}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def forget(self) -> None:
        """What a restart does: the engine's own cache is gone."""
        self._cache.clear()

    def asked(self, path: str) -> list[dict[str, Any]]:
        """Bodies of the requests for `path`, probes left out."""
        return [body for where, body in self.requests if where == path and body.get("prompt") != [1, 2]]

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self.version})

    async def _models(self, _: web.Request) -> web.Response:
        loaded = [{"id": name, "root": path, "parent": self.models[0]["id"]} for name, path in self.adapters.items()]
        return web.json_response({"object": "list", "data": [*self.models, *loaded]})

    async def _load_adapter(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not self.takes_adapters:
            return web.json_response({"detail": "Not Found"}, status=404)
        name = body["lora_name"]
        if self.refuses_adapters or name in self.adapters:
            message = self.refuses_adapters or f"The lora adapter '{name}' has already been loaded."
            return web.json_response({"error": {"message": message, "code": 400}}, status=400)
        self.adapters[name] = body["lora_path"]
        self.moves.append(name)
        return web.Response(text="Success")

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return web.json_response({"error": {"message": "cannot be found", "code": 404}}, status=404)
        self.moves.append(f"-{name}")
        return web.Response(text="Success")

    async def _tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"tokens": self.tokens_of(await request.json())})

    def tokens_of(self, body: dict[str, Any]) -> list[int]:
        if "messages" in body:
            text = "".join(f"<{m['role']}>{m['content']}\n" for m in body["messages"]) + "<assistant>"
            return list(text.encode())
        prompt = body["prompt"]
        return list(prompt.encode()) if isinstance(prompt, str) else list(prompt)

    def _signature_of(self, body: dict[str, Any]) -> Signature:
        path = self.adapters.get(body.get("model", ""))
        if path is None or self.mistakes_adapters:
            return self.signature
        return adapted(self.signature, digest=adapter_digest(Path(path)))

    def spans_of(self, tokens: Sequence[int], salt: str, signature: Signature | None = None) -> tuple[Span, ...]:
        whole = len(tokens) - len(tokens) % self.block_tokens
        key = bytes.fromhex(salt) if salt else bytes(32)
        return spans(tokens[:whole], signature=signature or self.signature, salt=key, block_tokens=self.block_tokens)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append((request.path, body))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if body.get("model", self.models[0]["id"]) not in [*(model["id"] for model in self.models), *self.adapters]:
            error = {"message": "The model does not exist.", "type": "NotFoundError", "param": "model", "code": 404}
            return web.json_response({"error": error}, status=404)
        if self.hold is not None and body.get("prompt") != [1, 2]:
            self.waiting.set()
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.aborted.set()
                raise
        usage, report = self._compute(body)
        if not body.get("stream"):
            choice: dict[str, Any] = {"index": 0, "text": "ab"}
            if body.get("return_tokens_as_token_ids"):
                tops = [{"token_id:5": -0.25, "token_id:6": -1.5}, {"token_id:6": -0.5}]
                choice |= {"token_ids": [5, 6], "logprobs": {"top_logprobs": tops}}
            answer = {"choices": [choice], "usage": usage, PARAMS: report}
            return web.json_response(answer)
        return await self._stream(request, body, usage)

    async def _stream(self, request: web.Request, body: dict[str, Any], usage: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("a", "b")]
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append({"choices": [], "usage": usage})
        for number, event in enumerate(events):
            if number == self.dies_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _compute(self, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        tokens, salt = self.tokens_of(body), body.get("cache_salt", "")
        raw = (body.get(PARAMS) or {}).get(NAME)
        wish = msgspec.convert(raw or {}, Wish)
        model = body.get("model", "")
        whose = f"{salt} {model}" if model in self.adapters else salt
        cut = self.spans_of(tokens, salt, self._signature_of(body))
        cached = 0
        if not wish.fresh and not wish.cold:
            longest = max((shared(known, tokens) for own, known in self._cache if own == whose), default=0)
            cached = min(longest, len(tokens) - 1) // ENGINE_BLOCK * ENGINE_BLOCK
        found = self.store.leading(cut) * self.block_tokens if self.store is not None else 0
        usable = min(found, len(tokens) - 1) // self.block_tokens * self.block_tokens
        loaded = max(0, usable - cached) if self.loads and not wish.cold else 0
        self.computed.append(len(tokens) - cached - loaded)
        self._cache.append((whose, tuple(tokens)))
        if self.store is not None and self.stores and raw is not None and wish.store:
            self.put(cut, tokens, salt)
        usage: dict[str, Any] = {"prompt_tokens": len(tokens), "completion_tokens": 2, "total_tokens": len(tokens) + 2}
        if self.tells_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": cached + loaded}
        report = Report(
            **self.rates,
            signature=self._signature_of(body),
            salt=salt or "0" * 64,
            block_tokens=self.block_tokens,
            kv_bytes_per_token=100,
            cached=cached,
            loaded=loaded,
            found=found,
        )
        told = {NAME: msgspec.to_builtins(report)} if self.store is not None and wish.report else None
        return usage, told

    def put(self, cut: Sequence[Span], tokens: Sequence[int], salt: str) -> None:
        """What the plug-in does once blocks are computed."""
        assert self.store is not None
        for span in cut:
            meta = BlockMeta(kind="block", signature=self.signature, start=span.start, stop=span.stop)
            payload = bytes(token % 256 for token in tokens[span.start : span.stop])
            self.store.put(span.key, [payload], meta, salt=bytes.fromhex(salt) if salt else bytes(32))
