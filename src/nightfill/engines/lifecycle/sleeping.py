"""An engine that may sleep, as an engine: whatever is asked of it wakes it first."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, TypeVar

from nightfill.engines.lifecycle.state import ModelState
from nightfill.engines.lifecycle.steps import SteppedFill, SteppedSampler, Steps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from nightfill.contexts.context import Content, Form
    from nightfill.engines.engine import Call, Description, Engine, Prefix, PrefixFill, Reply, Sampler, Tokens, Weighed
    from nightfill.engines.lifecycle.lifecycle import Lifecycle

T = TypeVar("T")


class SleepingEngine:
    """Implements `engines.engine.Engine`: no request reaches the engine while its model is not awake, and the model
    does not fall asleep before the request has ended. Work in the background holds it by steps. For one event loop.
    """

    def __init__(self, engine: Engine, lifecycle: Lifecycle, *, name: str, began: int | None = None) -> None:
        """`name`: of the model in `lifecycle`. `began`: all of it is one work in the background, which began when
        `Lifecycle.sent` said so.
        """
        self._engine = engine
        self._lifecycle = lifecycle
        self._name = name
        self._began = began
        self._description: Description | None = None

    def at_work(self) -> SleepingEngine:
        """The same for work in the background that begins now."""
        view = SleepingEngine(self._engine, self._lifecycle, name=self._name, began=self._lifecycle.sent(self._name))
        view._description = self._description
        return view

    def _used(self) -> AbstractAsyncContextManager[None]:
        return self._lifecycle.use(self._name, background=self._began)

    def _steps(self, begin: Callable[[], AbstractAsyncContextManager[T]]) -> Steps[T]:
        sent = self._lifecycle.sent(self._name) if self._began is None else self._began
        return Steps(self._lifecycle, self._name, begin, sent=sent)

    async def describe(self) -> Description:
        """What it runs; wakes it the first time only."""
        if self._description is None:
            async with self._used():
                self._description = await self._engine.describe()
        return self._description

    async def prefix_tokens(self, content: Content, form: Form) -> tuple[int, ...]:
        """Token ids that every request with this context in front starts with."""
        async with self._used():
            return await self._engine.prefix_tokens(content, form)

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of a completion's prompt."""
        async with self._used():
            return await self._engine.tokenize(text)

    @contextlib.asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Reply]:
        """Answer a request once it is awake."""
        arrived_s = time.perf_counter()
        async with self._used():
            waited_s = time.perf_counter() - arrived_s
            async with self._engine.open(call) as reply:
                yield _Late(reply, waited_s)

    def near(self, prefix: Prefix) -> int | None:
        """As the engine knows, which forgets its own KV when it is put to sleep."""
        return self._engine.near(prefix)

    @contextlib.asynccontextmanager
    async def fill(self, prefix: Prefix) -> AsyncIterator[PrefixFill]:
        """Begin a fill; it is awake during each step of it, and may sleep in between."""
        async with contextlib.aclosing(self._steps(lambda: self._engine.fill(prefix))) as steps:
            yield SteppedFill(steps)

    @contextlib.asynccontextmanager
    async def sampler(self, prefix: Prefix) -> AsyncIterator[Sampler]:
        """Begin to compare; it is awake during each sample."""
        async with contextlib.aclosing(self._steps(lambda: self._engine.sampler(prefix))) as steps:
            yield SteppedSampler(steps)

    def freeze(self) -> None:
        """Does nothing: work that stood frozen would hold awake a model for whose room others wait."""

    def thaw(self) -> None:
        """Does nothing."""

    @property
    def freezes(self) -> bool:
        """No; see `freeze`."""
        return False

    async def healthy(self) -> bool:
        """Whether it can be asked: a model that sleeps is well, one that failed is not."""
        return self._lifecycle.state(self._name) is not ModelState.FAILED

    async def aclose(self) -> None:
        """As the engine. Its model is stopped by the lifecycle."""
        await self._engine.aclose()


class _Late:
    """A reply whose request had to wait for the model."""

    def __init__(self, reply: Reply, waited_s: float) -> None:
        self._reply = reply
        self._waited_s = waited_s

    @property
    def status(self) -> int:
        return self._reply.status

    @property
    def content_type(self) -> str:
        return self._reply.content_type

    @property
    def restore_s(self) -> float:
        return self._reply.restore_s

    @property
    def weighed(self) -> Weighed | None:
        return self._reply.weighed

    @property
    def queued_s(self) -> float:
        return self._waited_s + self._reply.queued_s

    @property
    def loaded_tokens(self) -> int:
        return self._reply.loaded_tokens

    @property
    def tokens(self) -> Tokens:
        return self._reply.tokens

    def chunks(self) -> AsyncIterator[bytes]:
        return self._reply.chunks()
