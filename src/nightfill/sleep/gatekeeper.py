"""Keeps background work behind the gate: lets it begin, and stops it where it stands."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nightfill.errors import NightfillError
from nightfill.sleep.gate import CHECK_CLOSED_S, CHECK_RUNNING_S, Closed, Open, verdict
from nightfill.sleep.stopping import first_of, unless

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from nightfill.config import SleepSettings
    from nightfill.engines.engine import Engine
    from nightfill.state.load import LoadBoard

T = TypeVar("T")

_STOP_CHECK_S = 0.1


@dataclass(slots=True)
class _Pauses:
    frozen_s: float = 0.0


class Gatekeeper:
    """Acts on the gate's verdict. `stop` set means that the worker was asked to end. For one task at a time."""

    def __init__(
        self,
        board: LoadBoard,
        settings: SleepSettings,
        *,
        stop: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._board = board
        self._settings = settings
        self._stop = stop
        self._clock = clock
        self._sleep = sleep

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to end."""
        return self._stop.is_set()

    @property
    def live_ttft_s(self) -> float:
        """Smoothed live time to first token; 0 while unknown."""
        return self._board.read().ttft_s

    def freezes(self, engine: Engine) -> bool:
        """Whether a slice on this engine is stopped where it stands, instead of being cancelled."""
        return self._settings.freeze and engine.freezes

    async def opens(self, *, within_s: float | None = None) -> bool:
        """Wait until the gate is open. False when it stayed closed for `within_s`, or the worker is to stop."""
        deadline_s = None if within_s is None else self._clock() + within_s
        while not self._stop.is_set():
            match verdict(self._board.read(), self._settings, self._clock()):
                case Open():
                    return True
                case Closed(check_again_in_s=wait_s):
                    if deadline_s is not None and self._clock() >= deadline_s:
                        return False
                    await self._sleep(min(wait_s, _STOP_CHECK_S))
        return False

    async def unless_stopping(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`, or None when the worker is to stop first; `work` is cancelled then."""
        return await unless(self._stop, work)

    async def run(self, engine: Engine, work: Coroutine[Any, Any, T]) -> tuple[T | None, float]:
        """Run one slice, or what else an engine does behind live requests. It is frozen or ended when the gate closes,
        and ended when the worker is to stop.

        Its result, or None when it was cut short (the engine keeps what it did); and the seconds that it stood frozen.
        """
        pauses = _Pauses()
        failure: BaseException | None = None
        task: asyncio.Task[T] | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(work, name="slice")
                watch = tasks.create_task(self._watch(engine, task, pauses), name="gate")
                task.add_done_callback(lambda _: watch.cancel())
        except* NightfillError as group:
            failure = first_of(group)
        if failure is not None:
            raise failure
        assert task is not None
        return (None if task.cancelled() else task.result()), pauses.frozen_s

    async def _watch(self, engine: Engine, task: asyncio.Task[T], pauses: _Pauses) -> None:
        frozen_since_s: float | None = None
        try:
            while not self._stop.is_set():
                closed = isinstance(verdict(self._board.read(), self._settings, self._clock()), Closed)
                if closed and not self.freezes(engine):
                    break
                if closed and frozen_since_s is None:
                    engine.freeze()
                    frozen_since_s = self._clock()
                elif not closed and frozen_since_s is not None:
                    engine.thaw()
                    pauses.frozen_s += self._clock() - frozen_since_s
                    frozen_since_s = None
                await self._sleep(CHECK_RUNNING_S if frozen_since_s is None else CHECK_CLOSED_S)
            task.cancel()
        finally:
            # Also when we are cancelled: a frozen engine could not take note that its slice is over.
            if frozen_since_s is not None:
                engine.thaw()
                pauses.frozen_s += self._clock() - frozen_since_s
