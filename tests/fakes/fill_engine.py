"""An engine that fills in virtual time and keeps the contract of `engines.engine`, failures included."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from fakes.virtual_time import now_s
from nightfill.contexts.context import Messages, Signature
from nightfill.engines.engine import Description, Reuse, Sampled, Slice, Tokens, Way
from nightfill.errors import EngineUnavailable, TierFull

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from nightfill.contexts.context import Content, Form
    from nightfill.engines.engine import Call, Prefix, Reply

SIGNATURE = Signature("ab" * 32)


@dataclass
class FillStore:
    """What survives an engine: stored tokens by prefix."""

    stored: dict[tuple[tuple[int, ...], bytes], int] = field(default_factory=dict)
    full: bool = False
    wrong: set[tuple[tuple[int, ...], bytes]] = field(default_factory=set)
    """Prefixes whose stored KV is not what an engine would compute."""


@dataclass
class FillLog:
    """What engines did, all of them together."""

    batches: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of each computed batch."""
    computed: int = 0
    keeps: list[int] = field(default_factory=list)
    fills: int = 0
    open_fills: int = 0
    discards: int = 0
    calls: list[Call] = field(default_factory=list)
    """Requests that it was asked to answer."""
    ways: list[Way] = field(default_factory=list)
    """Of samples that came to their end."""


class FakeFill:
    def __init__(self, engine: FakeFillEngine, prefix: Prefix) -> None:
        self._engine = engine
        self._name = (tuple(prefix.tokens), prefix.salt)
        self._reached = 0

    async def resume(self) -> int:
        self._engine.check()
        self._reached = self._engine.store.stored.get(self._name, 0)
        return self._reached

    async def discard(self) -> None:
        self._engine.check()
        self._engine.store.stored.pop(self._name, None)
        self._engine.store.wrong.discard(self._name)
        self._engine.log.discards += 1

    async def extend(self, upto: int) -> Slice:
        assert upto <= len(self._name[0])
        began, began_s = self._reached, now_s()
        while self._reached < upto:
            await self._engine.compute(min(self._engine.batch_tokens, upto - self._reached))
            self._reached += min(self._engine.batch_tokens, upto - self._reached)
        return Slice(reached=self._reached, computed=self._reached - began, seconds=now_s() - began_s)

    async def keep(self) -> int:
        self._engine.check()
        if self._engine.store.full:
            raise TierFull("disk: no space left")
        await asyncio.sleep(self._engine.save_s)
        self._engine.check()
        self._engine.store.stored[self._name] = self._reached
        self._engine.log.keeps.append(self._reached)
        return self._reached

    async def prove(self) -> int:
        await self._engine.compute(1)
        return self._engine.proven(self._engine.store.stored.get(self._name, 0))


class FakeSampler:
    """Continues by rule; `rounds` is how far computing a prefix otherwise is off, wrong KV is off by much more."""

    def __init__(self, engine: FakeFillEngine, prefix: Prefix) -> None:
        self._engine = engine
        self._name = (tuple(prefix.tokens), prefix.salt)

    async def sample(self, tail: Sequence[int], way: Way, *, max_tokens: int) -> Sampled:
        store, tokens = self._engine.store, len(self._name[0])
        computed = len(tail) if way is Way.STORED else tokens
        await self._engine.compute(computed)
        off = {Way.OWN: 0.0, Way.STORED: self._engine.loads_off}.get(way, self._engine.rounds)
        if way is Way.STORED and self._name in store.wrong:
            off = 0.7
        self._engine.log.ways.append(way)
        return Sampled(
            tokens=tuple(range(max_tokens)),
            tops=tuple({token: -0.5 + off, 1000 + token: -3.0} for token in range(max_tokens)),
            reused={Way.STORED: store.stored.get(self._name, 0), Way.COLD: 0}.get(way, tokens),
            computed=computed,
        )


class FakeTold:
    """A chat's reply, not streamed."""

    content_type = "application/json"
    restore_s = queued_s = 0.0
    weighed = None

    def __init__(self, engine: FakeFillEngine, text: str | int, *, prompt: int, reused: int) -> None:
        self._engine, self._text, self._left = engine, text, prompt - reused + 10
        self.status = text if isinstance(text, int) else 200
        self.loaded_tokens = reused
        self.tokens = Tokens(prompt=prompt, reused=reused, output=10)

    async def chunks(self) -> AsyncIterator[bytes]:
        while self._left > 0:
            await self._engine.compute(min(self._engine.batch_tokens, self._left))
            self._left -= self._engine.batch_tokens
        message = {"role": "assistant", "content": self._text}
        yield msgspec.json.encode({"choices": [{"message": message, "finish_reason": "stop"}]})


class FakeFillEngine:
    """Computes `speed_tps` tokens per virtual second, in batches; `dies_after` tokens it is dead until replaced.

    `replies`: what it says to a question, or the status of its refusal.
    """

    def __init__(
        self,
        *,
        store: FillStore | None = None,
        log: FillLog | None = None,
        speed_tps: float = 1000.0,
        batch_tokens: int = 64,
        save_s: float = 0.01,
        freezes: bool = True,
        context_length: int = 10_000,
        reuse: Reuse = Reuse.TRIM,
        signature: Signature = SIGNATURE,
        dies_after: int | None = None,
        proves: bool = True,
        start_s: float = 0.5,
        rounds: float = 0.01,
        loads_off: float = 0.0,
        replies: Callable[[str], str | int] = lambda question: f"About {question}",
    ) -> None:
        self.replies = replies
        self.rounds, self.loads_off = rounds, loads_off
        self.store = store or FillStore()
        self.log = log or FillLog()
        self.speed_tps, self.batch_tokens, self.save_s, self.start_s = speed_tps, batch_tokens, save_s, start_s
        self.dies_after, self.proves = dies_after, proves
        self.dead = self.closed = False
        self.frozen_times = 0
        self._freezes = freezes
        self._running = asyncio.Event()
        self._running.set()
        self._started = False
        self._description = Description(
            engine="local",
            model="m",
            signature=signature,
            context_length=context_length,
            kv_bytes_per_token=100,
            slots=1,
            reuse=reuse,
            embeddings=False,
            version="fake",
        )

    def check(self) -> None:
        assert not self.closed, "used after it was closed"
        if self.dead:
            raise EngineUnavailable("the process is gone", engine="local")

    def proven(self, stored: int) -> int:
        return stored if self.proves else 0

    async def compute(self, tokens: int) -> None:
        """One batch. Cancelled midway it is not done; frozen midway it goes on where it stood."""
        left_s = tokens / self.speed_tps
        while left_s > 1e-9:
            await self._running.wait()
            self.check()
            began_s = now_s()
            step_s = min(left_s, 0.001)
            await asyncio.sleep(step_s)
            left_s -= step_s
            self.log.batches.append((began_s, now_s()))
        self.check()
        self.log.computed += tokens
        if self.dies_after is not None:
            self.dies_after -= tokens
            if self.dies_after <= 0:
                self.dead, self.dies_after = True, None
                self.check()

    async def describe(self) -> Description:
        self.check()
        if not self._started:
            await asyncio.sleep(self.start_s)
            self._started = True
        return self._description

    async def prefix_tokens(self, content: Content, form: Form) -> tuple[int, ...]:
        self.check()
        text = content.messages[0].content if isinstance(content, Messages) else content.text
        return (len(form), *text.encode())

    async def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def near(self, prefix: Prefix) -> int | None:
        return None

    @contextlib.asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Reply]:
        """Replies with what `replies` says to the last message, in 10 tokens; what is not stored is computed first."""
        self.check()
        messages = msgspec.json.decode(call.body["messages"])
        prefix = (tuple(call.prefix.tokens), call.prefix.salt) if call.prefix is not None else ((), b"")
        stored = self.store.stored.get(prefix, 0)
        self.log.calls.append(call)
        yield FakeTold(self, self.replies(messages[-1]["content"]), prompt=len(prefix[0]) + 5, reused=stored)

    @contextlib.asynccontextmanager
    async def fill(self, prefix: Prefix) -> AsyncIterator[FakeFill]:
        self.check()
        assert self.log.open_fills == 0, "one fill at a time"
        self.log.open_fills += 1
        self.log.fills += 1
        try:
            yield FakeFill(self, prefix)
        finally:
            self.log.open_fills -= 1

    @contextlib.asynccontextmanager
    async def sampler(self, prefix: Prefix) -> AsyncIterator[FakeSampler]:
        self.check()
        assert self.log.open_fills == 0, "not while a fill is under way"
        yield FakeSampler(self, prefix)

    def freeze(self) -> None:
        if self._freezes and self._running.is_set():
            self.frozen_times += 1
            self._running.clear()

    def thaw(self) -> None:
        self._running.set()

    @property
    def frozen(self) -> bool:
        return not self._running.is_set()

    @property
    def freezes(self) -> bool:
        return self._freezes

    async def healthy(self) -> bool:
        return not self.dead

    async def aclose(self) -> None:
        self.closed = True
