"""What is done to a model: each transition, and each call to its sleeper, with a bound on its time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

from nightfill.engines.backoff import BackoffPolicy, Restart, after_exit
from nightfill.engines.lifecycle.model import Event, Model, Woke
from nightfill.engines.lifecycle.sleeper import Footprint, Woken
from nightfill.engines.lifecycle.state import TRANSITIONS, ModelState
from nightfill.errors import EngineStart, EngineTimeout, EngineUnavailable, NightfillError, WokeWrong

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from typing import Any

    from nightfill.config import LifecycleSettings
    from nightfill.engines.lifecycle.sleeper import Level

S = ModelState
T = TypeVar("T")
_log = logging.getLogger(__name__)
_ASLEEP: Final[Mapping[Level, ModelState]] = MappingProxyType({1: S.ASLEEP_1, 2: S.ASLEEP_2})
_NO_SECONDS: Final[Mapping[str, float]] = MappingProxyType({})
_BACKOFF: Final = BackoffPolicy()
_MOST_DOUBLINGS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Acts:
    """Each method but `to` and `ended` takes its time, and is called once at a time for each model."""

    settings: LifecycleSettings
    devices: Mapping[str, int]
    """Bytes by name."""
    clock: Callable[[], float]
    wall: Callable[[], float]
    on_event: Callable[[Event], None] = field(default=lambda _event: None)

    def to(self, model: Model, after: ModelState, reason: str, seconds: Mapping[str, float] = _NO_SECONDS) -> None:
        """The one place where states change."""
        before = model.state
        assert after in TRANSITIONS[before], f"{model.name}: {after} does not follow {before}"
        model.state, model.since_s, model.since_unix_s = after, self.clock(), self.wall()
        model.stir()
        self.on_event(
            Event(at_s=model.since_unix_s, model=model.name, before=before, after=after, reason=reason, seconds=seconds)
        )

    async def wake(self, model: Model) -> None:
        """From STARTING to AWAKE, and let its line in; FAILED if that does not succeed."""
        async with self._or_fail(model, self.settings.start_timeout_s, "wake"):
            woken = await self._warmed(model)
            self._measured(model, await self._alive(model, model.sleeper.footprint()))
            self._awake(model, woken)

    async def _warmed(self, model: Model, *, again: bool = True) -> Woken:
        """With `warm` as its last phase. One that woke wrong is started anew, once."""
        woken = await model.sleeper.wake()
        await self._unwatched(model)
        model.watch = asyncio.create_task(model.sleeper.ended(), name=f"watch {model.name}")
        self.to(model, S.WARMING, "it is up", woken.seconds)
        began_s = self.clock()
        try:
            await self._alive(model, model.sleeper.warm())
        except WokeWrong as exc:
            if not again:
                raise
            self.to(model, S.STARTING, f"starts anew: {_said(exc, model)}")
            if not await self._ended_by_us(model):  # its room is still its own meanwhile
                raise
            return await self._warmed(model, again=False)
        return Woken(seconds={**woken.seconds, "warm": self.clock() - began_s}, fresh=woken.fresh)

    def _measured(self, model: Model, footprint: Footprint) -> None:
        model.footprint = footprint
        there = self.devices[model.managed.device]
        if model.size_bytes is None and footprint.device_bytes:  # zero: it has just died
            model.size_bytes = footprint.device_bytes
        if model.size_bytes is not None and model.size_bytes > there:
            raise EngineStart(
                f"takes {model.size_bytes} bytes, and device {model.managed.device} has {there}"
                " (lifecycle.devices, max_bytes)",
                engine=model.name,
            )
        model.held_bytes = model.size_bytes or there

    def _awake(self, model: Model, woken: Woken) -> None:
        now_s, oldest_s = self.clock(), model.line.oldest_s
        model.last_wake = Woke(
            at_s=self.wall(),
            seconds=woken.seconds,
            waited_s=0.0 if oldest_s is None else now_s - oldest_s,
            released=len(model.line),
            fresh=woken.fresh,
        )
        model.woke_s = now_s
        model.wakes += 1
        model.refuses, model.error, model.doublings = False, "", 0
        self.to(model, S.AWAKE, "it is warm", woken.seconds)
        model.let_in()

    async def sleep(self, model: Model, level: Level, reason: str) -> None:
        """From DRAINING, or from ASLEEP_1, to sleep; FAILED if that does not succeed."""
        assert model.in_flight == 0, f"{model.name} has requests in flight"
        seconds: dict[str, float] = {}
        async with self._or_fail(model, self.settings.sleep_timeout_s, "fall asleep"):
            began_s = self.clock()
            if model.state is S.DRAINING:
                await self._kept(model)
                seconds["keep"], began_s = self.clock() - began_s, self.clock()
            await self._alive(model, model.sleeper.sleep(level))
            seconds["sleep"] = self.clock() - began_s
            footprint = await self._alive(model, model.sleeper.footprint())
            model.footprint = footprint
            model.held_bytes, model.host_bytes = footprint.device_bytes, footprint.host_bytes
            if level == 1:
                model.host_1_bytes = footprint.host_bytes
            self.to(model, _ASLEEP[level], reason, seconds)

    async def _kept(self, model: Model) -> None:
        """A store that fails costs what it would have kept, not the sleep."""
        try:
            await self._alive(model, model.sleeper.keep())
        except NightfillError as exc:
            _log.warning("model %s: its KV is not kept: %s", model.name, _said(exc, model))

    def ended(self, model: Model) -> None:
        """Its process ended by itself; `stop` has to follow. Requests that wait go on to wait: it is woken again."""
        words = _words(model)
        model.failures += 1
        model.error = f"its process ended by itself: {words}"
        if model.state in _ASLEEP.values():
            self.to(model, S.STOPPED, model.error)
            return
        now_s = self.clock()
        again = after_exit(exits=model.exits, ready_s=now_s - model.woke_s, ever_ready=True, policy=_BACKOFF)
        assert isinstance(again, Restart)
        model.exits, model.refuses, model.retry_at_s = again.exits, False, now_s + again.delay_s
        self.to(model, S.FAILED, model.error)

    async def stop(self, model: Model) -> None:
        """End its process, wherever it is. Its room is free afterwards, unless even that did not end in time."""
        if await self._ended_by_us(model):
            model.held_bytes = model.host_bytes = 0
            model.footprint = Footprint(device_bytes=0)

    async def _ended_by_us(self, model: Model) -> bool:
        await self._unwatched(model)
        try:
            async with asyncio.timeout(self.settings.sleep_timeout_s):
                await model.sleeper.stop()
        except TimeoutError:
            _log.error("model %s: did not stop within %g s", model.name, self.settings.sleep_timeout_s)
            return False
        return True

    @contextlib.asynccontextmanager
    async def _or_fail(self, model: Model, limit_s: float, what: str) -> AsyncIterator[None]:
        try:
            try:
                async with asyncio.timeout(limit_s):
                    yield
            except TimeoutError:
                raise EngineTimeout(f"did not {what} within {limit_s:g} s", engine=model.name) from None
        except NightfillError as exc:
            await self._fail(model, _said(exc, model))
        except Exception as exc:  # noqa: BLE001 - the outermost frame of a task: the others go on
            _log.exception("model %s: could not %s", model.name, what)
            await self._fail(model, f"could not {what}: {type(exc).__name__}")

    async def _fail(self, model: Model, error: str) -> None:
        model.failures += 1
        model.error, model.refuses = error, True
        model.retry_at_s = self.clock() + self.settings.retry_after_s * 2.0**model.doublings
        model.doublings = min(model.doublings + 1, _MOST_DOUBLINGS)
        self.to(model, S.FAILED, error)
        model.refuse(error)
        await self.stop(model)

    async def _alive(self, model: Model, call: Coroutine[Any, Any, T]) -> T:
        """What the call returns, as long as the process lives."""
        assert model.watch is not None
        task = asyncio.create_task(call)
        try:
            await asyncio.wait({task, model.watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise EngineUnavailable(f"its process ended by itself: {_words(model)}", engine=model.name)
            return task.result()
        finally:
            await _over(task)

    async def _unwatched(self, model: Model) -> None:
        if model.watch is not None:
            watch, model.watch = model.watch, None
            await _over(watch)


async def _over(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # whoever waited for it was told


def _words(model: Model) -> str:
    assert model.watch is not None
    error = model.watch.exception()
    return model.watch.result() if error is None else str(error)


def _said(error: Exception, model: Model) -> str:
    return str(error).removeprefix(f"engine {model.name}: ")
