"""Background work on a model that may sleep: it holds the model awake during each of its steps, not all along.

Between two steps it waits for live requests to end, perhaps for those that wait for this model's room.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from nightfill.engines.engine import PrefixFill, Sampled, Sampler, Slice, Way
    from nightfill.engines.lifecycle.lifecycle import Lifecycle

T = TypeVar("T")


class Steps(Generic[T]):
    """What an engine has begun, and begins anew where its model has slept between two steps. For one task at a time."""

    def __init__(
        self, lifecycle: Lifecycle, name: str, begin: Callable[[], AbstractAsyncContextManager[T]], *, sent: int
    ) -> None:
        """`sent`: what `Lifecycle.sent` said when the work began."""
        self._lifecycle = lifecycle
        self._name = name
        self._begin = begin
        self._sent = sent
        self._begun: tuple[int, T] | None = None
        """By which wake, and what."""
        self._stack = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def step(self) -> AsyncIterator[tuple[T, bool]]:
        """What was begun, while the model is awake; and whether that was just now. Raises as `Lifecycle.use`."""
        async with self._lifecycle.use(self._name, background=self._sent):
            wake = self._lifecycle.wakes(self._name)
            if self._begun is not None and self._begun[0] == wake:
                yield self._begun[1], False
                return
            await self.aclose()
            begun = await self._stack.enter_async_context(self._begin())
            self._begun = wake, begun
            yield begun, True

    async def aclose(self) -> None:
        """End what was begun."""
        self._begun = None
        await self._stack.aclose()


class SteppedFill:
    """Implements `engines.engine.PrefixFill`. What was not stored when the model fell asleep is computed again."""

    def __init__(self, steps: Steps[PrefixFill]) -> None:
        self._steps = steps

    async def resume(self) -> int:
        """Load what the store has."""
        async with self._steps.step() as (fill, _):
            return await fill.resume()

    async def discard(self) -> None:
        """Drop what the store and the engine have."""
        async with self._steps.step() as (fill, _):
            await fill.discard()

    async def extend(self, upto: int) -> Slice:
        """Compute the first `upto` tokens, from where the store ends if the model has slept."""
        async with self._steps.step() as (fill, anew):
            if anew:
                await fill.resume()
            return await fill.extend(upto)

    async def keep(self) -> int:
        """Store what is computed."""
        async with self._steps.step() as (fill, anew):
            return await (fill.resume() if anew else fill.keep())

    async def prove(self) -> int:
        """Load it from the store, and ask."""
        async with self._steps.step() as (fill, _):
            return await fill.prove()


class SteppedSampler:
    """Implements `engines.engine.Sampler`."""

    def __init__(self, steps: Steps[Sampler]) -> None:
        self._steps = steps

    async def sample(self, tail: Sequence[int], way: Way, *, max_tokens: int) -> Sampled:
        """Continue the prefix and `tail`."""
        async with self._steps.step() as (sampler, _):
            return await sampler.sample(tail, way, max_tokens=max_tokens)
