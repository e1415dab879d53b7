"""Models that sleep, put together: one lifecycle over the engines with a device, and what it is told in advance."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from nightfill.cli.engine_room import engine_names
from nightfill.cli.upkeep import running
from nightfill.engines.lifecycle.forecast import next_use
from nightfill.engines.lifecycle.lifecycle import Lifecycle
from nightfill.engines.lifecycle.state import ModelState
from nightfill.errors import StateError
from nightfill.gateway.model_views import Transitions
from nightfill.sleep.slumber import TELL_EVERY_S, tell
from nightfill.sleep.windows import wakes_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from nightfill.config import Settings
    from nightfill.engines.lifecycle.lifecycle import Managed
    from nightfill.engines.lifecycle.model import Event
    from nightfill.observe.metrics import Sample
    from nightfill.sleep.windows import Windows
    from nightfill.state.access import AccessLog
    from nightfill.state.engines import EngineBook
    from nightfill.state.state import State

_LOG: Final = logging.getLogger(__name__)
LOOK_EVERY_S: Final = 15.0
_HISTORY_EVERY_S: Final = 600.0
_STAY_S: Final = 300.0
"""Awake after a time of `wake_at`, where no idle time is set."""


class LifecycleRoom:
    """The lifecycle, what hears of its transitions, and the loops beside it. For one event loop."""

    def __init__(self, models: Sequence[Managed], settings: Settings) -> None:
        """Raises BadSetting."""
        self._settings = settings
        self._transitions = Transitions()
        self._moved = asyncio.Event()
        self.lifecycle = Lifecycle(models, settings.lifecycle, on_event=self._hear)
        stay_s = float(settings.lifecycle.level_1_after_s) or _STAY_S
        self._names = {one.name: engine_names(one) for one in settings.engines}
        self._crons = {
            one.name: wakes_of(one.wake_at, key="engines.wake_at", length_s=stay_s, zone=settings.sleep.time_zone)
            for one in settings.engines
            if one.device
        }

    def _hear(self, event: Event) -> None:
        self._transitions(event)
        self._moved.set()

    def samples(self) -> Iterable[Sample]:
        """For each scrape."""
        return self._transitions.samples(self.lifecycle.statuses())

    @contextlib.asynccontextmanager
    async def looked_after(self, state: State, called: Mapping[str, str], stop: asyncio.Event) -> AsyncIterator[None]:
        """Tell workers which models are awake, and wake models in advance, while inside. `called`: what requests call
        the model of each engine.
        """
        async with (
            running(self._keep_told(state.engines, stop), name="tell who is awake"),
            running(self._foresee(called, state.access, stop), name="wake in advance"),
        ):
            yield

    async def _keep_told(self, book: EngineBook, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._moved.clear()
            try:
                for status in self.lifecycle.statuses():
                    for name in self._names[status.name]:
                        await tell(book, name, awake=status.state is ModelState.AWAKE)
            except StateError as exc:
                _LOG.warning("workers do not hear which models are awake: %s", exc)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_EVERY_S):
                    await self._moved.wait()

    async def _foresee(self, called: Mapping[str, str], access: AccessLog, stop: asyncio.Event) -> None:
        hours: dict[str, Mapping[int, int]] = {}
        read_at_s = float("-inf")
        while not stop.is_set():
            now_s = time.time()
            try:
                if self._settings.lifecycle.forecast and time.monotonic() - read_at_s >= _HISTORY_EVERY_S:
                    hours = {name: await self._hours(name, called, access, now_s) for name in self._crons}
                    read_at_s = time.monotonic()
            except StateError as exc:
                _LOG.warning("when models are asked is not known: %s", exc)
            for status in self.lifecycle.statuses():
                until_s = needed_until_s(
                    self._crons[status.name],
                    hours.get(status.name, {}),
                    now_s=now_s,
                    wake_s=LOOK_EVERY_S + (sum(status.last_wake.seconds.values()) if status.last_wake else 0.0),
                    ahead_s=self._settings.lifecycle.wake_ahead_s,
                )
                if until_s is not None:
                    self.lifecycle.expect(status.name, until_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await stop.wait()

    async def _hours(self, name: str, called: Mapping[str, str], access: AccessLog, now_s: float) -> Mapping[int, int]:
        """In which the model was asked, by its own name or an adapter's."""
        asked: Counter[int] = Counter()
        for one in self._names[name]:
            asked.update(await access.model_hours(called[one], now_s=now_s))
        return asked


def needed_until_s(
    crons: Windows, hours: Mapping[int, int], *, now_s: float, wake_s: float, ahead_s: float
) -> float | None:
    """Until when a model is to be awake, if it has to begin to wake now; None where it need not.

    It is awake at each time of `crons`, and `ahead_s` before a use that `hours` let expect (see `forecast`); waking
    takes `wake_s`. What it gives, and `now_s`, are Unix seconds.
    """
    window = crons.open_at(now_s + wake_s) or crons.open_at(now_s)
    ends = [] if window is None else [window.closes_at_s]
    expected = next_use(hours, now_s=now_s, zone=crons.zone)
    if expected is not None and expected.at_s - ahead_s - wake_s <= now_s:
        ends.append(expected.until_s)
    return max(ends, default=None)
