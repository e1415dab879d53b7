"""The one loop that owns the states of all models that may sleep: it asks the policy, and has it done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from nightfill.engines.lifecycle.acts import Acts
from nightfill.engines.lifecycle.model import Event, Managed, Model, Status, Woke
from nightfill.engines.lifecycle.policy import decide, next_look_s
from nightfill.engines.lifecycle.state import ModelState
from nightfill.engines.lifecycle.view import Drain, Refuse, Resume, Sleep, Wake
from nightfill.engines.lifecycle.waiting import Line
from nightfill.errors import BadSetting, EngineTimeout, EngineUnavailable, NotFound, SentToSleep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from typing import Any

    from nightfill.config import LifecycleSettings
    from nightfill.engines.lifecycle.sleeper import Level
    from nightfill.engines.lifecycle.view import Action

__all__ = ["Event", "Lifecycle", "Managed", "Status", "Woke"]

S = ModelState
_log = logging.getLogger(__name__)
_OVER: Final = "is being stopped for good"
_RESTS: Final = frozenset({S.STOPPED, S.ASLEEP_1, S.ASLEEP_2, S.FAILED})


class Lifecycle:
    """Wakes models when they are needed, and puts them to sleep when others need their room. For one event loop.

    Each model has at most one call to its sleeper under way; models act at the same time as others, of their device
    too where the room allows it.
    """

    def __init__(
        self,
        models: Sequence[Managed],
        settings: LifecycleSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        """`on_event` is told of each transition as it happens; it must not raise. Raises BadSetting."""
        self._settings = settings
        self._clock, self._wall = clock, wall
        self._devices = {device.name: int(device.max_bytes) for device in settings.devices}
        self._acts = Acts(
            settings=settings, devices=self._devices, clock=clock, wall=wall, on_event=on_event or (lambda _event: None)
        )
        self._models: dict[str, Model] = {}
        for managed in models:
            if managed.device not in self._devices:
                known = ", ".join(self._devices) or "none"
                message = f"engine {managed.name}: no device {managed.device!r} in lifecycle.devices (there: {known})"
                raise BadSetting(message, param="engines")
            self._models[managed.name] = self._model_of(managed)
        self._changed = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._closed = False

    def _model_of(self, managed: Managed) -> Model:
        line = Line(
            engine=managed.name,
            max_waiting=self._settings.max_waiting,
            max_wait_s=self._settings.max_wait_s,
            clock=self._clock,
            on_lost=lambda: self._leave(self._model(managed.name)),
        )
        return Model(managed=managed, line=line, pinned=managed.pinned, since_unix_s=self._wall())

    async def __aenter__(self) -> Lifecycle:
        self._loop = asyncio.create_task(self._run(), name="lifecycle")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """End the loop, refuse whoever waits, and stop all models. Raises what the loop ended with, if it did."""
        assert self._loop is not None
        self._loop.cancel()
        try:
            await asyncio.wait({self._loop})
        finally:
            await asyncio.gather(*(self._acts.stop(model) for model in self._models.values()))
            for model in self._models.values():
                if model.state is not S.STOPPED:
                    self._acts.to(model, S.STOPPED, "the lifecycle ends")
        if not self._loop.cancelled():
            self._loop.result()

    # --- what others ask for ---

    @contextlib.asynccontextmanager
    async def use(self, name: str, *, background: int | None = None) -> AsyncIterator[None]:
        """Wait until the model is awake; it does not fall asleep inside. Who comes first gets in first.

        Work in the background gives what `sent` said when it began. It waits behind everybody: until the model is
        awake for others, or there is room for it that nobody uses. It should not stay inside for long, or others wait
        for it.

        Raises QueueFull (`max_waiting`), EngineTimeout (`max_wait_s`), EngineUnavailable where it could not be woken,
        cannot be, or nothing is woken any more; in the background SentToSleep, or it would wake at once what somebody
        has just put to sleep.
        """
        model = self._model(name)
        await (self._enter(model) if background is None else self._enter_behind(model, background))
        try:
            yield
        finally:
            self._leave(model)

    async def wake(self, name: str) -> None:
        """As a request would that asks nothing, but one that failed is tried again at once. Raises as `use`."""
        self._model(name).retry_at_s = -math.inf
        async with self.use(name):
            pass

    async def sleep(self, name: str, level: Level | None = None) -> None:
        """Put the model to sleep once no request is in flight, and take its pin away; the next request wakes it again.
        Work in the background that began before does not.

        A model that rests already is left as it is, or goes from level 1 to level 2. `level` None: the quickest to
        wake. Raises EngineTimeout when it is in use for too long (twice `sleep_timeout_s`), EngineUnavailable when it
        could not be put to sleep.
        """
        model = self._model(name)
        wanted = level if level in model.sleeper.levels else min(model.sleeper.levels)
        model.pinned, model.expected_until_s = False, -math.inf
        model.sent += 1
        model.stir()
        if _rests(model, wanted):
            return
        model.told.append(wanted)
        self._changed.set()
        limit_s = 2 * self._settings.sleep_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                while not _rests(model, wanted):
                    await model.moved.wait()
        except TimeoutError:
            message = f"is still {model.state} after {limit_s:g} s, with {model.in_flight} requests in flight"
            raise EngineTimeout(message, engine=name) from None
        finally:
            model.told.remove(wanted)
            self._changed.set()
        if model.state is S.FAILED:
            raise EngineUnavailable(f"could not be put to sleep, and was stopped: {model.error}", engine=name)

    def pin(self, name: str, pinned: bool) -> None:
        """Keep it awake from now on, or no longer."""
        self._model(name).pinned = pinned
        self._changed.set()

    def expect(self, name: str, until_s: float) -> None:
        """Somebody will ask for it before `until_s`, Unix seconds: wake it when there is room that nobody uses, and
        keep it awake until then.
        """
        self._model(name).expected_until_s = self._clock() + until_s - self._wall()
        self._changed.set()

    def state(self, name: str) -> ModelState:
        """What the model is doing."""
        return self._model(name).state

    def sent(self, name: str) -> int:
        """How often the model was sent to sleep by hand."""
        return self._model(name).sent

    def wakes(self, name: str) -> int:
        """How often the model woke: when that has changed, its engine has forgotten its own KV."""
        return self._model(name).wakes

    def statuses(self) -> list[Status]:
        """All models, in the order in which they were given."""
        now_s, now_unix_s = self._clock(), self._wall()
        return [model.status(now_s=now_s, now_unix_s=now_unix_s) for model in self._models.values()]

    def _model(self, name: str) -> Model:
        if (model := self._models.get(name)) is None:
            known = ", ".join(self._models) or "none"
            raise NotFound(f"no engine {name} that may sleep (there: {known})", param="engine")
        return model

    async def _enter(self, model: Model) -> None:
        self._check(model)
        model.used_s = self._clock()
        if model.state is S.AWAKE:
            model.in_flight += 1
            if model.line.resuming:
                await model.line.follow()
            return
        self._changed.set()
        try:
            await model.line.wait()
        finally:
            self._changed.set()  # who left may have been the last for whom others were to give way

    async def _enter_behind(self, model: Model, sent: int) -> None:
        model.behind += 1
        self._changed.set()
        try:
            async with asyncio.timeout(self._settings.max_wait_s):
                self._check_behind(model, sent)
                while model.state is not S.AWAKE:
                    await model.moved.wait()
                    self._check_behind(model, sent)
        except TimeoutError:
            message = f"was not awake, and found no free room, within {self._settings.max_wait_s:g} s"
            raise EngineTimeout(message, engine=model.name) from None
        finally:
            model.behind -= 1
        model.in_flight += 1
        model.used_s = self._clock()

    def _check(self, model: Model) -> None:
        """Raises EngineUnavailable where there is no use in waiting."""
        if self._closed:
            raise EngineUnavailable(_OVER, engine=model.name)
        if model.refuses and (left_s := model.retry_at_s - self._clock()) > 0:
            message = f"could not be woken, and is tried again in {left_s:.1f} s: {model.error}"
            raise EngineUnavailable(message, engine=model.name)

    def _check_behind(self, model: Model, sent: int) -> None:
        self._check(model)
        if model.sent != sent and model.state is not S.AWAKE:
            raise SentToSleep("was sent to sleep by hand", engine=model.name)

    def _leave(self, model: Model) -> None:
        model.in_flight -= 1
        model.used_s = self._clock()
        if model.in_flight == 0:
            self._changed.set()

    # --- the loop ---

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._changed.clear()
                    look_s = self._step(tasks)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(look_s):
                            await self._changed.wait()
        except Exception:
            _log.exception("the lifecycle ends: no model wakes any more")
            raise
        finally:
            self._closed = True
            for model in self._models.values():
                model.refuse(_OVER)
                model.stir()

    def _step(self, tasks: asyncio.TaskGroup) -> float | None:
        """Do all that is to be done now; seconds until the next look, None for not before something happens."""
        for model in self._models.values():
            if model.watch is not None and model.watch.done() and model.acting is None:
                self._acts.ended(model)
                self._begin(tasks, model, self._acts.stop)
        while True:
            views = [model.view() for model in self._models.values()]
            now_s = self._clock()
            actions = decide(views, self._devices, self._settings, now_s)
            if not actions:
                look_s = next_look_s(views, self._settings, now_s) - now_s
                return None if math.isinf(look_s) else look_s
            for action in actions:
                self._do(tasks, action)

    def _do(self, tasks: asyncio.TaskGroup, action: Action) -> None:
        model = self._models[action.name]
        match action:
            case Wake(reason=reason):
                self._acts.to(model, S.STARTING, reason)
                model.tried = True
                # Of unknown size, it may take all of the device; the policy wakes nobody beside it.
                model.held_bytes = model.size_bytes or self._devices[model.managed.device]
                model.host_bytes = 0
                self._begin(tasks, model, self._acts.wake)
            case Drain(reason=reason):
                self._acts.to(model, S.DRAINING, reason)
            case Resume(reason=reason):
                self._acts.to(model, S.AWAKE, reason)
                model.let_in()
            case Sleep(level=level, reason=reason):
                if level == 1:
                    model.host_bytes = model.host_1_bytes
                self._begin(tasks, model, partial(self._acts.sleep, level=level, reason=reason))
            case Refuse(reason=reason):
                model.refuse(reason)

    def _begin(self, tasks: asyncio.TaskGroup, model: Model, act: Callable[[Model], Coroutine[Any, Any, None]]) -> None:
        assert model.acting is None, f"{model.name} is being acted on"
        model.acting = tasks.create_task(act(model), name=f"{model.name}: {model.state}")
        model.acting.add_done_callback(lambda _task: self._acted(model))

    def _acted(self, model: Model) -> None:
        model.acting = None
        if model.state is S.AWAKE and model.watch is not None:
            model.watch.add_done_callback(self._look)
        self._changed.set()

    def _look(self, _task: asyncio.Task[str]) -> None:
        self._changed.set()


def _rests(model: Model, level: Level) -> bool:
    """It is as deep asleep as wanted, or cannot be deeper."""
    return model.state in _RESTS and not (model.state is S.ASLEEP_1 and level == 2)
