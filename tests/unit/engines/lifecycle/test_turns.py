"""What taking turns by model is worth against swapping for each request, and how long it makes anybody wait."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import pytest

from fakes.sleeper import FakeSleeper
from fakes.virtual_time import VirtualLoop, now_s
from nightfill.config import ByteSize, DeviceSettings, Duration, LifecycleSettings
from nightfill.engines.lifecycle.lifecycle import Event, Lifecycle, Managed
from nightfill.engines.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

SLOTS: Final = 2
TURN_S: Final = 10.0


class Serving(Protocol):
    def use(self, name: str, /) -> AbstractAsyncContextManager[None]: ...


class FirstComeFirstServed:
    """Swaps models as the requests come. Those of one model that follow each other run at the same time."""

    def __init__(self, sleepers: dict[str, FakeSleeper]) -> None:
        self._sleepers = sleepers
        self._turn = asyncio.Lock()
        self._idle = asyncio.Condition()
        self._in_flight = 0
        self._up = ""

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[None]:
        async with self._turn:
            if self._up != name:
                async with self._idle:
                    await self._idle.wait_for(lambda: self._in_flight == 0)
                if self._up:
                    await self._sleepers[self._up].keep()
                    await self._sleepers[self._up].sleep(1)
                await self._sleepers[name].wake()
                await self._sleepers[name].warm()
                self._up = name
            self._in_flight += 1
        try:
            yield
        finally:
            async with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()


@dataclass
class Load:
    """So many clients for each model, each asks again as soon as it is answered; an engine answers two at a time."""

    names: str
    clients: int
    requests: int
    answer_s: float
    waits_s: list[float] = field(default_factory=list)

    async def run(self, serving: Serving) -> float:
        """Requests per second."""
        slots = {name: asyncio.Semaphore(SLOTS) for name in self.names}
        began_s = now_s()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.clients):  # A B A B ...
                for name in self.names:
                    tasks.create_task(self._client(serving, name, slots[name]))
        return self.clients * len(self.names) * self.requests / (now_s() - began_s)

    async def _client(self, serving: Serving, name: str, slots: asyncio.Semaphore) -> None:
        for _ in range(self.requests):
            asked_s = now_s()
            async with serving.use(name):
                self.waits_s.append(now_s() - asked_s)
                async with slots:
                    await asyncio.sleep(self.answer_s)


def in_turns(sleepers: dict[str, FakeSleeper], on_event: Callable[[Event], None]) -> Lifecycle:
    settings = LifecycleSettings(
        devices=(DeviceSettings(name="gpu", max_bytes=ByteSize(100)),),
        max_turn_s=Duration(TURN_S),
        max_wait_s=Duration(3600),
        level_1_after_s=Duration(0),
    )
    managed = [Managed(name=name, device="gpu", sleeper=sleeper) for name, sleeper in sleepers.items()]
    return Lifecycle(managed, settings, clock=now_s, wall=now_s, on_event=on_event)


def sleepers_of(names: str) -> dict[str, FakeSleeper]:
    return {name: FakeSleeper(name) for name in names}


def longest_drain_s(events: list[Event]) -> float:
    """From the last request that is let in to the end of the last one in flight."""
    began_s: dict[str, float] = {}
    longest_s = 0.0
    for event in events:
        if event.after is ModelState.DRAINING:
            began_s[event.model] = event.at_s
        elif event.before is ModelState.DRAINING:
            longest_s = max(longest_s, event.at_s - began_s[event.model] - sum(event.seconds.values()))
    return longest_s


@pytest.mark.parametrize(("names", "answer_s"), [("ab", 0.2), ("ab", 1.0), ("abc", 0.5)])
def test_turns_serve_at_least_twice_as_much_as_swapping_and_nobody_waits_longer_than_the_bound(
    names: str, answer_s: float
) -> None:
    async def swapping() -> float:
        return await Load(names, clients=4, requests=25, answer_s=answer_s).run(
            FirstComeFirstServed(sleepers_of(names))
        )

    async def turns() -> float:
        sleepers, events = sleepers_of(names), list[Event]()
        load = Load(names, clients=4, requests=25, answer_s=answer_s)
        async with in_turns(sleepers, events.append) as lifecycle:
            for name in names:
                await lifecycle.wake(name)  # so that each was measured
            events.clear()
            per_s = await load.run(lifecycle)
        one = sleepers[names[0]]
        swap_s = one.keep_s + one.sleep_s + one.wake_s + one.warm_s
        bound_s = len(names) * (TURN_S + longest_drain_s(events) + swap_s)
        assert max(load.waits_s) <= bound_s
        # The bound is no idle one: somebody waited for the turns of all the others.
        assert max(load.waits_s) >= (len(names) - 1) * TURN_S
        return per_s

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        swapped_per_s, per_s = runner.run(swapping()), runner.run(turns())
    assert per_s >= 2 * swapped_per_s
