"""The line of requests that wait for one model: bounded, in order of arrival, each with a deadline of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nightfill.errors import EngineTimeout, QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable


class Line:
    """For one event loop. Whoever is let through counts as in flight from `release` on, not from when it runs again:
    `on_lost` gives that back when it was cancelled meanwhile.
    """

    def __init__(
        self,
        *,
        engine: str,
        max_waiting: int,
        max_wait_s: float,
        clock: Callable[[], float],
        on_lost: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._on_lost = on_lost
        self._turns: dict[asyncio.Future[None], float] = {}
        """Who waits, first come first, with the time of arrival."""
        self._passed: set[asyncio.Future[None]] = set()
        """Who was let through, and does not run again yet."""

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def oldest_s(self) -> float | None:
        """When the first in line came, by the clock; None where nobody waits."""
        return next(iter(self._turns.values()), None)

    @property
    def resuming(self) -> bool:
        """Whether somebody who was let through has yet to run: who comes now has to go behind."""
        return bool(self._passed)

    async def wait(self) -> None:
        """Wait for `release`.

        Raises QueueFull at once, EngineTimeout at the deadline whatever the model does, and what `fail` says.
        """
        if len(self._turns) >= self._max_waiting:
            message = f"{len(self._turns)} requests wait for {self._engine} to wake (lifecycle.max_waiting)"
            raise QueueFull(message, retry_after_s=1.0)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns[turn] = self._clock()
        await self._behind(turn)

    async def follow(self) -> None:
        """Run again after everybody who was let through before; the caller counts as in flight already."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._passed.add(turn)
        loop.call_soon(_let, turn)
        await self._behind(turn)

    async def _behind(self, turn: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(self._max_wait_s):
                await turn
        except BaseException as exc:
            if turn in self._passed:  # its turn came in the very moment in which it left
                self._on_lost()
            if isinstance(exc, TimeoutError):
                message = f"did not wake within {self._max_wait_s:g} s (lifecycle.max_wait_s)"
                raise EngineTimeout(message, engine=self._engine) from None
            raise
        finally:
            self._turns.pop(turn, None)
            self._passed.discard(turn)

    def release(self) -> int:
        """Let everybody through, in order; how many."""
        passing = [turn for turn in self._turns if not turn.done()]
        self._turns.clear()
        self._passed.update(passing)
        for turn in passing:
            turn.set_result(None)
        return len(passing)

    def fail(self, error: Callable[[], Exception]) -> None:
        """Answer everybody with an error of their own, now."""
        turns = list(self._turns)
        self._turns.clear()
        for turn in turns:
            if not turn.done():
                turn.set_exception(error())


def _let(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
