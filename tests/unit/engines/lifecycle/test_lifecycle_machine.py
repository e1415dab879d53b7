"""The lifecycle under whatever happens to it, in virtual time: what has to hold after each step, and all along."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import hypothesis.strategies as st
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fakes.sleeper import FakeSleeper, Fault
from fakes.virtual_time import VirtualLoop
from nightfill.config import ByteSize, DeviceSettings, Duration, LifecycleSettings
from nightfill.engines.lifecycle.lifecycle import Event, Lifecycle, Managed
from nightfill.engines.lifecycle.state import TRANSITIONS, ModelState
from nightfill.errors import EngineTimeout, EngineUnavailable, QueueFull, SentToSleep

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from nightfill.engines.lifecycle.sleeper import Level

S = ModelState
DEVICES: Final = {"gpu": 100, "cpu": 50}
HOST_BYTES: Final = 70
ON: Final = {"a": "gpu", "b": "gpu", "c": "gpu", "d": "cpu", "e": "cpu"}
SETTINGS: Final = LifecycleSettings(
    devices=tuple(DeviceSettings(name=name, max_bytes=ByteSize(size)) for name, size in DEVICES.items()),
    host_max_bytes=ByteSize(HOST_BYTES),
    level_1_after_s=Duration(60),
    level_2_after_s=Duration(200),
    max_waiting=4,
    max_wait_s=Duration(50),
    start_timeout_s=Duration(20),
    sleep_timeout_s=Duration(5),
    retry_after_s=Duration(8),
)
MODELS = st.sampled_from(sorted(ON))
LATE_S: Final = 0.001


@dataclass
class Asked:
    task: asyncio.Task[None]
    name: str
    session: int
    number: int
    at_s: float
    began: int | None = None
    """Work in the background: what the lifecycle said of sleeps by hand when it began."""
    entered: bool = False


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.loop = self.runner.get_loop()
        self.sleepers = {
            "a": FakeSleeper("a", 60, level_1_bytes=5, host_1_bytes=40),
            "b": FakeSleeper("b", 70, host_1_bytes=40),
            "c": FakeSleeper("c", 30, levels=frozenset({2}), wake_s=3.0),
            "d": FakeSleeper("d", 50, levels=frozenset({1})),
            "e": FakeSleeper("e", 40, level_1_bytes=2, host_1_bytes=20),
        }
        for sleeper in self.sleepers.values():
            sleeper.on_step, sleeper.stop_s = self.look_at_memory, 0.5
        self.wrong: list[str] = []
        self.events: list[Event] = []
        self.asked: list[Asked] = []
        self.by_hand: list[asyncio.Task[None]] = []
        self.got_in: dict[tuple[str, int], int] = {}

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.runner.run(coroutine)

    def look_at_memory(self) -> None:
        for device, size in DEVICES.items():
            taken = sum(self.sleepers[name].device_bytes for name, on in ON.items() if on == device)
            if taken > size:
                self.wrong.append(f"{taken} bytes are taken of device {device}, which has {size}")

    def told_of(self, event: Event) -> None:
        self.events.append(event)
        if event.after not in TRANSITIONS[event.before]:
            self.wrong.append(f"{event.after} does not follow {event.before}")

    @initialize(pinned=st.sampled_from(["", "", "a", "c"]))
    def begin(self, pinned: str) -> None:
        self.lifecycle = Lifecycle(
            [
                Managed(name=name, device=ON[name], sleeper=sleeper, pinned=name == pinned)
                for name, sleeper in self.sleepers.items()
            ],
            SETTINGS,
            clock=self.loop.time,
            wall=lambda: 1e9 + self.loop.time(),
            on_event=self.told_of,
        )

        async def enter() -> None:
            await self.lifecycle.__aenter__()

        self.run(enter())

    async def _ask(self, asked: Asked, work_s: float) -> None:
        sleeper = self.sleepers[asked.name]
        try:
            async with self.lifecycle.use(asked.name, background=asked.began):
                asked.entered = True
                deaths = sleeper.deaths
                if sleeper.where != "up" or not sleeper.is_warm:
                    # It may have died a moment ago; then nobody knows yet.
                    if self.lifecycle.state(asked.name) is not S.AWAKE or sleeper.where != "stopped":
                        self.wrong.append(f"a request reached {asked.name}, which is {sleeper.where}")
                    return
                key = (asked.name, asked.session)
                if asked.began is None and self.got_in.get(key, -1) > asked.number:
                    self.wrong.append(f"request {asked.number} came in behind {self.got_in[key]}")
                if asked.began is None:
                    self.got_in[key] = asked.number
                sleeper.in_flight += 1
                try:
                    await asyncio.sleep(work_s)
                finally:
                    if sleeper.deaths == deaths:
                        sleeper.in_flight -= 1
        except (QueueFull, EngineTimeout, EngineUnavailable, SentToSleep):
            pass

    @rule(
        name=MODELS,
        session=st.integers(0, 2),
        work_s=st.sampled_from([0.0, 0.3, 4.0, 70.0]),
        copies=st.integers(1, 3),
        background=st.sampled_from([False, False, True]),
    )
    def ask(self, name: str, session: int, work_s: float, copies: int, background: bool) -> None:
        async def begin() -> None:
            us = asyncio.current_task()
            assert us is not None
            for _ in range(copies):
                began = self.lifecycle.sent(name) if background else None
                asked = Asked(us, name, session, len(self.asked), self.loop.time(), began)
                asked.task = asyncio.create_task(self._ask(asked, work_s))
                self.asked.append(asked)
            await asyncio.sleep(0)

        self.run(begin())

    @precondition(lambda self: any(not asked.task.done() for asked in self.asked))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from([asked for asked in self.asked if not asked.task.done()]))

        async def cancel() -> None:
            asked.task.cancel()
            await asyncio.sleep(data.draw(st.sampled_from([0.0, 0.001])))

        self.run(cancel())

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.05, 0.6, 1.1, 2.5, 7.0, 16.0, 61.0, 210.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(
        name=MODELS,
        method=st.sampled_from(["wake", "warm", "keep", "sleep 1", "sleep 2"]),
        fault=st.sampled_from(["fail", "hang", "wrong", "bug"]),
    )
    def break_something(self, name: str, method: str, fault: Fault) -> None:
        self.sleepers[name].faults.setdefault(method, []).append(fault)

    @rule(name=MODELS)
    def kill(self, name: str) -> None:
        self.sleepers[name].die()

    @rule(name=MODELS, level=st.sampled_from([None, 1, 2]))
    def put_to_sleep(self, name: str, level: Level | None) -> None:
        self.run(self._by_hand(self.lifecycle.sleep(name, level)))

    @rule(name=MODELS)
    def wake(self, name: str) -> None:
        self.run(self._by_hand(self.lifecycle.wake(name)))

    async def _by_hand(self, what: Coroutine[Any, Any, None]) -> None:
        async def do() -> None:
            with contextlib.suppress(QueueFull, EngineTimeout, EngineUnavailable):
                await what

        self.by_hand.append(asyncio.create_task(do()))
        await asyncio.sleep(0)

    @rule(name=MODELS, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        self.lifecycle.pin(name, pinned)

    @rule(name=MODELS, seconds=st.sampled_from([5.0, 100.0]))
    def expect(self, name: str, seconds: float) -> None:
        self.lifecycle.expect(name, 1e9 + self.loop.time() + seconds)

    @rule(name=st.sampled_from(["a", "b", "e"]), size=st.sampled_from([10, 40, 80]))
    def need_other_host_memory(self, name: str, size: int) -> None:
        self.sleepers[name].host_1_bytes = size

    @invariant()
    def all_is_well(self) -> None:
        assert self.wrong == []
        for sleeper in self.sleepers.values():
            assert sleeper.breaches == []
            calls = [call for call in sleeper.log if call in ("wake", "warm")]
            assert ("warm", "warm") not in pairwise(calls), "warmed twice for one wake"

    @invariant()
    def who_waits_does_not_wait_too_long(self) -> None:
        late_s = self.loop.time() - SETTINGS.max_wait_s - LATE_S
        assert [asked for asked in self.asked if not (asked.entered or asked.task.done()) and asked.at_s < late_s] == []

    @invariant()
    def nobody_sleeps_with_work_in_flight(self) -> None:
        for status in self.lifecycle.statuses():
            sleeper = self.sleepers[status.name]
            assert "Error" not in status.error or "ZeroDivisionError" in status.error, status.error
            if status.state in (S.ASLEEP_1, S.ASLEEP_2):
                assert sleeper.in_flight == 0
            if status.state is S.AWAKE and sleeper.where != "stopped":
                assert sleeper.is_warm

    def teardown(self) -> None:
        async def end() -> None:
            waiting = [asked for asked in self.asked if not asked.entered]
            await asyncio.sleep(SETTINGS.max_wait_s + LATE_S)
            assert all(asked.entered or asked.task.done() for asked in waiting), "somebody waits for ever"
            tasks = [*self.by_hand, *(asked.task for asked in self.asked)]
            await self.lifecycle.__aexit__(None, None, None)
            await asyncio.gather(*tasks, return_exceptions=True)
            assert all(sleeper.where == "stopped" for sleeper in self.sleepers.values())
            for task in tasks:
                assert task.cancelled() or task.exception() is None

        with contextlib.closing(self.runner):
            self.run(end())
            self.all_is_well()


Machine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.generate],  # to shrink a failure takes minutes: take this line away for that
    derandomize=True,
)
TestLifecycle = Machine.TestCase
