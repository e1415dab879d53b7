"""An engine in memory that keeps the contract of `nightfill.engines.engine.Engine`, scripted by the test."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from nightfill.contexts.context import Content, Form, Messages, Signature, Text
from nightfill.engines.engine import Call, Description, Prefix, PrefixFill, Reuse, Sampler, Slice, Tokens, Weighed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.errors import NightfillError

SIGNATURE = Signature("5" * 64)


def event(content: str) -> bytes:
    """A chunk of a chat stream, as an engine sends it."""
    return b'data: {"choices":[{"index":0,"delta":{"content":' + msgspec.json.encode(content) + b"}}]}\n\n"


DONE = b"data: [DONE]\n\n"


@dataclass
class FakeReply:
    """Plays chunks back; before chunk i it waits for `gates[i]`, if there is one."""

    engine: FakeEngine
    call: Call
    status: int = 200
    content_type: str = "text/event-stream"
    restore_s: float = 0.0
    queued_s: float = 0.0
    weighed: Weighed | None = None
    loaded_tokens: int = 0
    tokens: Tokens = field(default_factory=Tokens)

    async def chunks(self) -> AsyncIterator[bytes]:
        engine = self.engine
        for index, chunk in enumerate(engine.script if self.call.stream else [engine.whole]):
            if (gate := engine.gates.get(index)) is not None:
                await gate.wait()
            if engine.dies_before == index and engine.death is not None:
                raise engine.death
            yield chunk
        self.tokens = Tokens(prompt=engine.prompt_tokens, reused=engine.reused, output=3)


@dataclass
class FakeEngine:
    """Answers every request from a script."""

    name: str = "fake"
    model: str = "demo"
    script: list[bytes] = field(default_factory=lambda: [event("a"), event("b"), DONE])
    whole: bytes = b'{"choices":[{"message":{"role":"assistant","content":"ab"}}],"usage":{"prompt_tokens":9}}'
    status: int = 200
    gates: dict[int, asyncio.Event] = field(default_factory=dict)
    dies_before: int = -1
    death: NightfillError | None = None
    refusal: NightfillError | None = None
    """Raised by `open`."""
    loaded: int | None = None
    """Tokens that a request's prefix loads; None for all."""
    weighed: Weighed | None = None
    """How it decided to load a request's prefix or not."""
    reused: int | None = None
    """What it says early that it reused; None for nothing said."""
    restore_s: float = 0.0
    """That loading a prefix took."""
    prompt_tokens: int = 9
    embeddings: bool = False
    is_healthy: bool = True
    reuse: Reuse = Reuse.TRIM
    signature: Signature = SIGNATURE
    ailment: NightfillError | None = None
    """Raised by `describe`."""
    calls: list[Call] = field(default_factory=list)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request was left before its end."""
    probed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it was asked whether it is healthy."""
    running: int = 0
    distance: int | None = None
    """What it says of every prefix."""

    async def describe(self) -> Description:
        if self.ailment is not None:
            raise self.ailment
        return Description(
            engine=self.name,
            model=self.model,
            signature=self.signature,
            context_length=4096,
            kv_bytes_per_token=1024,
            slots=2,
            reuse=self.reuse,
            embeddings=self.embeddings,
            version="fake 1",
        )

    async def prefix_tokens(self, content: Content, form: Form) -> tuple[int, ...]:
        match content:
            case Text(text=text):
                return tuple(text.encode())
            case Messages(messages=messages):
                return tuple("".join(m.content for m in messages).encode())

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def near(self, prefix: Prefix) -> int | None:
        return self.distance

    @contextlib.asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[FakeReply]:
        self.calls.append(call)
        self.opened.set()
        if self.refusal is not None:
            raise self.refusal
        promised = len(call.prefix.tokens) if call.prefix is not None else 0
        reply = FakeReply(
            engine=self,
            call=call,
            status=self.status,
            content_type="text/event-stream" if call.stream and self.status == 200 else "application/json",
            loaded_tokens=promised if self.loaded is None else min(self.loaded, promised),
            tokens=Tokens(reused=self.reused),
            restore_s=self.restore_s,
            weighed=self.weighed,
        )
        self.running += 1
        try:
            yield reply
        except BaseException:
            self.aborted.set()
            raise
        finally:
            self.running -= 1

    @contextlib.asynccontextmanager
    async def fill(self, prefix: Prefix) -> AsyncIterator[PrefixFill]:
        yield FakeFill(tokens=len(prefix.tokens))

    def sampler(self, prefix: Prefix) -> contextlib.AbstractAsyncContextManager[Sampler]:
        raise NotImplementedError

    def freeze(self) -> None:
        pass

    def thaw(self) -> None:
        pass

    @property
    def freezes(self) -> bool:
        return False

    async def healthy(self) -> bool:
        self.probed.set()
        return self.is_healthy

    async def aclose(self) -> None:
        pass


@dataclass
class FakeFill:
    """A fill that takes no time and stores everything."""

    tokens: int
    reached: int = 0
    kept: int = 0

    async def resume(self) -> int:
        self.reached = self.kept
        return self.kept

    async def discard(self) -> None:
        self.reached = self.kept = 0

    async def extend(self, upto: int) -> Slice:
        computed, self.reached = max(0, upto - self.reached), max(upto, self.reached)
        return Slice(reached=self.reached, computed=computed, seconds=computed / 1000)

    async def keep(self) -> int:
        self.kept = self.reached
        return self.kept

    async def prove(self) -> int:
        return max(0, self.kept - 1)
