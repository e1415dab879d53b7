"""The embedded engine: one GGUF model in one llama.cpp child process, to serve with or to fill with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from nightfill.contexts import Front
from nightfill.contexts.context import Form
from nightfill.engines.difference import common_prefix, unlike_chats, unlike_prompts
from nightfill.engines.engine import Description, Reuse, Slice
from nightfill.engines.llama.adapters import Rack
from nightfill.engines.llama.api import LlamaApi
from nightfill.engines.llama.fill import SLOT, LlamaFill, slice_end
from nightfill.engines.llama.lora import PRIMER
from nightfill.engines.llama.probe import probe
from nightfill.engines.llama.reply import LlamaReply
from nightfill.engines.llama.sampler import LlamaSampler
from nightfill.engines.llama.slots import SlotTable
from nightfill.engines.llama.stay import Stay
from nightfill.engines.llama.transfer import Transfer
from nightfill.engines.restores import Restores
from nightfill.engines.signature import adapted
from nightfill.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence

    from nightfill.contexts.context import Content
    from nightfill.engines.adapted import Adapter
    from nightfill.engines.engine import Call, Prefix, PrefixFill, Sampler
    from nightfill.engines.llama.lora import Lora
    from nightfill.engines.llama.model import LlamaModel
    from nightfill.engines.llama.probe import Probed
    from nightfill.engines.llama.process import LlamaProcess
    from nightfill.engines.llama.slots import Slot
    from nightfill.kv.key import BlockKey
    from nightfill.kv.store import Store

_STREAMABLE: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
_IN_A_SLOT: Final = _STREAMABLE | {"/v1/responses", "/v1/messages"}
_NOT_ADAPTED: Final = frozenset({"/v1/messages", "/v1/embeddings", "/v1/rerank"})
"""Routes that llama.cpp answers without adapters, whatever they say of them."""
_WITHOUT_KV: Final = frozenset({"/tokenize", "/detokenize", "/apply-template", "/v1/messages/count_tokens"})


def go_behind() -> None:
    """Let the calling thread run only when nothing else wants to: cutting and sealing are background work too."""
    with contextlib.suppress(OSError):  # some sandboxes refuse it; the thread then merely competes
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _copies(call: Call) -> int:
    """Answers that are wanted to each prompt."""
    wanted = [1]
    for name in ("n", "n_cmpl"):
        with contextlib.suppress(msgspec.DecodeError):
            wanted.append(msgspec.json.decode(call.body.get(name, b"1"), type=int))
    return max(wanted)


class LlamaEngine:
    """Implements `engines.engine.Engine`. For one event loop."""

    def __init__(
        self,
        model: LlamaModel,
        *,
        process: LlamaProcess,
        store: Store,
        block_tokens: int,
        restore: Literal["measured", "always"] = "measured",
        max_waiting: int = 64,
        first_byte_timeout_s: float = 900.0,
        idle_timeout_s: float = 300.0,
    ) -> None:
        self._model = model
        self._process = process
        self._pool = ThreadPoolExecutor(
            max_workers=2,
            thread_name_prefix=f"kv-{model.settings.name}",
            initializer=go_behind if model.filling else None,
        )
        self._api = LlamaApi.of(process, first_byte_timeout_s=first_byte_timeout_s, idle_timeout_s=idle_timeout_s)
        self._transfer = Transfer(
            store=store,
            api=self._api,
            scratch=model.scratch,
            signature=model.signature,
            block_tokens=block_tokens,
            pool=self._pool,
            adapted={one.name: adapted(model.signature, digest=one.digest, scale=one.scale) for one in model.adapters},
        )
        self._rack = Rack(
            model.adapters,
            process=process,
            most=model.settings.max_adapters,
            start_timeout_s=model.settings.start_timeout_s,
        )
        self._restores = Restores(always=restore == "always")
        self._slots = SlotTable(model.slots, max_waiting=max_waiting, clock=time.monotonic)
        self._description: Description | None = None
        self._describing = asyncio.Lock()
        self._filling = asyncio.Lock()

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """That requests may be under."""
        return self._model.adapters

    async def describe(self) -> Description:
        """What it runs. Waits for the child, and probes it, the first time."""
        if self._description is not None:
            return self._description
        async with self._describing:
            if self._description is None:
                self._process.start()
                await self._process.ready(self._model.settings.start_timeout_s)
                probed = await self._probe()
                if not probed.plain and self._process.streams > 1:
                    # Its files are kept whole, as the filling child makes them: for one stream.
                    await self._process.restart(self._model.child(unified=True))
                    await self._process.ready(self._model.settings.start_timeout_s)
                    probed = await self._probe()
                self._transfer.plain, self._transfer.streams = probed.plain, self._process.streams
                self._description = Description(
                    engine=self._model.settings.name,
                    model=self._model.served_name,
                    signature=self._model.signature,
                    context_length=self._model.context_length,
                    kv_bytes_per_token=probed.kv_bytes_per_token,
                    slots=self._model.slots,
                    reuse=Reuse.NONE if self._model.settings.reuse == "replay" else probed.reuse,
                    embeddings=self._model.settings.embeddings,
                    version=self._model.version,
                )
        return self._description

    async def _probe(self) -> Probed:
        return await probe(self._api, self._model.scratch, name="probe.slot", slot=0, windowed=self._model.windowed)

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of a completion's prompt."""
        await self.describe()
        async with self._rack.use(""):
            return await self._api.tokenize(text, add_special=True, parse_special=True)

    async def prefix_tokens(self, content: Content, form: Form) -> tuple[int, ...]:
        """Token ids that every request with this context in front starts with."""
        await self.describe()
        front = Front(content)
        async with self._rack.use(""):
            if form is Form.COMPLETION:
                texts = unlike_prompts(front)
            else:
                texts = [await self._api.apply_template(messages) for messages in unlike_chats(front)]
            rows = [await self._api.tokenize(text, add_special=True, parse_special=True) for text in texts]
        return common_prefix(rows)

    @contextlib.asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[LlamaReply]:
        """Answer a request, in a slot that has its prefix or is given it first.

        Raises AdapterUnfit besides, and BadRequest on a route that llama.cpp does not serve under adapters.
        """
        description = await self.describe()
        # While the child is being started again, requests wait for it instead of being refused.
        await self._process.ready(self._model.settings.start_timeout_s)
        if call.adapter and call.path in _NOT_ADAPTED:
            raise BadRequest(f"{call.path} is not served by model {call.adapter!r}, which is an adapter", param="model")
        if call.path not in _IN_A_SLOT:
            async with self._rack.use(""), self._open_anywhere(call) as reply:
                yield reply
            return
        async with self._rack.use(call.adapter) as lora, self._open_in_a_slot(call, description, lora) as reply:
            yield reply

    @contextlib.asynccontextmanager
    async def _open_in_a_slot(self, call: Call, description: Description, lora: Lora) -> AsyncIterator[LlamaReply]:
        stay = Stay(call, description, lora, api=self._api, transfer=self._transfer, restores=self._restores)
        arrived_s = time.perf_counter()
        async with self._slots.acquire(
            generation=self._process.generation,
            spans=stay.spans,
            text=stay.text if call.reuse else b"",
            said=stay.said,
        ) as slot:
            queued_s = time.perf_counter() - arrived_s
            await stay.begin(slot)
            joined = not call.stream and call.path in _STREAMABLE
            copies = _copies(call)
            body = self._body(call, slot, lora, joined=joined)
            reply = LlamaReply(
                engine=self._model.settings.name,
                path=call.path,
                streamed=call.stream or joined,
                joined=joined,
                copies=copies,
                wants_progress=call.body.get("return_progress") == b"true",
                loaded_tokens=stay.held,
                restore_s=stay.restore_s,
                queued_s=queued_s,
                weighed=stay.weighed,
            )
            try:
                async with self._api.stream(call.path, body, headers=call.headers) as response:
                    await reply.begin(response)
                    lora.check()
                    yield reply
            finally:
                stay.end(slot, reply)
                if copies > 1:
                    # Each copy took a slot of llama.cpp's choice.
                    self._slots.forget_free()

    @contextlib.asynccontextmanager
    async def _open_anywhere(self, call: Call) -> AsyncIterator[LlamaReply]:
        """Routes that take no slot's id. Embeddings and ranking use whichever is free, and its KV is gone then."""
        reply = LlamaReply(
            engine=self._model.settings.name,
            path=call.path,
            streamed=call.stream,
            joined=False,
            wants_progress=True,
            loaded_tokens=0,
            restore_s=0.0,
            queued_s=0.0,
        )
        if call.path not in _WITHOUT_KV:
            self._slots.forget_free()
        async with self._api.stream(call.path, msgspec.json.encode(call.body), headers=call.headers) as response:
            await reply.begin(response)
            yield reply

    def _body(self, call: Call, slot: Slot, lora: Lora, *, joined: bool) -> bytes:
        ours: dict[str, object] = {"id_slot": slot.id, "cache_prompt": call.reuse, **lora.members}
        if call.path in _STREAMABLE and (call.stream or joined):
            ours["return_progress"] = True
        if joined:
            ours |= {"stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode({**call.body, **ours})

    @contextlib.asynccontextmanager
    async def fill(self, prefix: Prefix) -> AsyncIterator[PrefixFill]:
        """Begin a fill in slot 0; waits for the one before to end."""
        await self.describe()
        async with self._filling, self._rack.use(prefix.adapter) as lora:
            try:
                batch_tokens = self._model.settings.batch_tokens
                api = await self._alone_under(lora)
                yield LlamaFill(prefix, api=api, transfer=self._transfer, batch_tokens=batch_tokens)
            finally:
                self.thaw()

    @contextlib.asynccontextmanager
    async def sampler(self, prefix: Prefix) -> AsyncIterator[Sampler]:
        """Compare in slot 0; waits for a fill to end."""
        description = await self.describe()
        async with self._filling, self._rack.use(prefix.adapter) as lora:
            try:
                yield LlamaSampler(
                    prefix,
                    api=await self._alone_under(lora),
                    transfer=self._transfer,
                    batch_tokens=self._model.settings.batch_tokens,
                    trims=description.reuse is Reuse.TRIM,
                )
            finally:
                self.thaw()

    async def _alone_under(self, lora: Lora) -> LlamaApi:
        """For background work in slot 0."""
        self._slots.forget_free()
        api = self._api.under(lora)
        if lora.scales:
            await api.prefill(PRIMER, slot=SLOT)
        return api

    def near(self, prefix: Prefix) -> int:
        """A slot has it, or memory, or the store's other tiers."""
        assert self._description is not None
        reuse = self._description.reuse
        spans = self._transfer.cut(prefix) if reuse is Reuse.NONE else self._transfer.spans(prefix)
        held = self._slots.most_held(spans, generation=self._process.generation)
        if reuse is not Reuse.EXACT and held >= len(prefix.tokens):
            return 0
        return 1 if self._transfer.in_memory(spans) else 2

    def warmed(self, wanted: Sequence[Prefix]) -> list[int]:
        """Tokens of each prefix that a slot holds; other requests take the slots of these prefixes last."""
        return self._slots.keep([self._transfer.cut(prefix) for prefix in wanted], generation=self._process.generation)

    async def warm(self, prefix: Prefix, upto: int) -> Slice:
        """Compute the first `upto` tokens (or a few more) in the slot that has most of them, else in a free one."""
        await self.describe()
        spans = self._transfer.cut(prefix)
        total, block_tokens = len(prefix.tokens), self._transfer.block_tokens
        end = slice_end(upto, total=total, block_tokens=block_tokens)
        async with (
            self._rack.use("") as lora,
            self._slots.acquire(generation=self._process.generation, spans=spans, text=b"") as slot,
        ):
            reached = slot.holds(spans)
            if not reached:
                slot.forget(slot.generation)

            def note(processed: int, _total: int) -> None:
                nonlocal reached
                reached = max(reached, processed)

            slot.kept, slot.said, slot.scales = True, None, lora.scales
            try:
                done = await self._api.under(lora).prefill(prefix.tokens[:end], slot=slot.id, on_progress=note)
                reached = end
            finally:
                slot.spans = tuple(span for span in spans if span.stop <= reached)
        return Slice(reached=end, computed=done.computed, seconds=done.seconds)

    @property
    def held(self) -> frozenset[BlockKey]:
        """Keys of the filled prefixes that its slots were given."""
        return self._slots.held(generation=self._process.generation)

    async def forget(self, keys: Collection[BlockKey]) -> bool:
        """Clear the slots that hold KV of any of these keys, and what slot files left in the scratch folder.

        False when one of them is busy with a request that is under way: ask again.
        """
        with self._slots.taken(keys) as slots:
            for slot in slots:
                await self._api.slot_erase(slot.id)
                slot.forget(slot.generation)
        await self._transfer.clear_scratch()
        return self.held.isdisjoint(keys)

    async def keep(self) -> int:
        """Store what requests had to compute of filled prefixes because the store had lost it; how many of them.

        Nothing that stands on what was restored: it may have been lost for being wrong. Raises EngineError, KvError.
        """
        kept = 0
        if self._transfer.plain:
            for slot, prefix, tokens in self._slots.computed(generation=self._process.generation):
                if self._transfer.stored(prefix) < tokens:
                    await self._transfer.save(slot, prefix, reached=tokens)
                    kept += 1
        return kept

    def let_go(self) -> None:
        """The child is about to drop what its slots hold, or has ended: close the connections that nobody uses."""
        self._api.drop_idle()
        self._slots.forget_free()

    @property
    def freezes(self) -> bool:
        """A child process can be stopped where it stands."""
        return True

    def freeze(self) -> None:
        """Stop the child (SIGSTOP)."""
        self._process.freeze()

    def thaw(self) -> None:
        """Let the child go on (SIGCONT)."""
        self._process.thaw()

    async def healthy(self) -> bool:
        """Whether the child answers, or is about to with other adapters."""
        return self._rack.changing or await self._api.health()

    async def aclose(self) -> None:
        """End the child and remove its scratch folder."""
        await self._rack.aclose()
        await self._process.aclose()
        await self._api.aclose()
        self._pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self._model.scratch, ignore_errors=True)
