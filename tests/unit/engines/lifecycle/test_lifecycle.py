from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import pytest

from fakes.sleeper import FakeSleeper
from fakes.virtual_time import now_s, until, virtual
from nightfill.config import ByteSize, DeviceSettings, Duration, LifecycleSettings
from nightfill.engines.lifecycle.lifecycle import Event, Lifecycle, Managed, Status
from nightfill.engines.lifecycle.sleeper import Footprint
from nightfill.engines.lifecycle.state import TRANSITIONS, ModelState
from nightfill.errors import BadSetting, EngineTimeout, EngineUnavailable, NotFound, QueueFull

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

S = ModelState
UNIX_S: Final = 1e9


def lifecycle_of(
    *sleepers: FakeSleeper, pinned: str = "", events: list[Event] | None = None, **given: Any
) -> Lifecycle:
    settings = LifecycleSettings(devices=(DeviceSettings(name="gpu", max_bytes=ByteSize(100)),), **given)
    managed = [
        Managed(name=sleeper.name, device="gpu", sleeper=sleeper, pinned=sleeper.name == pinned) for sleeper in sleepers
    ]
    return Lifecycle(
        managed,
        settings,
        clock=now_s,
        wall=lambda: UNIX_S + now_s(),
        on_event=None if events is None else events.append,
    )


@contextlib.asynccontextmanager
async def measured(*sleepers: FakeSleeper, **given: Any) -> AsyncIterator[Lifecycle]:
    """Each was up once, and its log begins anew; the last is awake."""
    async with lifecycle_of(*sleepers, **given) as lifecycle:
        for sleeper in sleepers:
            await lifecycle.wake(sleeper.name)
        for sleeper in sleepers:
            sleeper.log.clear()
        yield lifecycle
    assert [breach for sleeper in sleepers for breach in sleeper.breaches] == []


def status_of(lifecycle: Lifecycle, name: str) -> Status:
    return next(status for status in lifecycle.statuses() if status.name == name)


async def ask(lifecycle: Lifecycle, name: str = "m") -> None:
    async with lifecycle.use(name):
        pass


async def held_for(lifecycle: Lifecycle, sleeper: FakeSleeper, seconds: float) -> None:
    async with lifecycle.use(sleeper.name):
        sleeper.in_flight += 1
        await asyncio.sleep(seconds)
        sleeper.in_flight -= 1


# --- waking ---


@virtual
async def test_a_hundred_first_requests_wake_a_model_once_warm_it_once_and_get_in_as_they_came() -> None:
    sleeper, order = FakeSleeper(), list[int]()

    async def ask(lifecycle: Lifecycle, number: int) -> None:
        async with lifecycle.use("m"):
            assert sleeper.is_warm
            order.append(number)

    async with lifecycle_of(sleeper) as lifecycle:
        await asyncio.gather(*(ask(lifecycle, number) for number in range(100)))
        assert sleeper.log == ["wake", "warm"]
        woke = status_of(lifecycle, "m").last_wake
        assert woke is not None
        assert (woke.released, set(woke.seconds)) == (100, {"load", "warm"})
        assert woke.waited_s == pytest.approx(1.1)
    assert order == list(range(100))


@virtual
async def test_a_request_that_comes_when_the_line_is_released_stays_behind_it() -> None:
    order, late = list[str](), list[asyncio.Task[None]]()

    async def ask(name: str) -> None:
        async with lifecycle.use("m"):
            order.append(name)

    class Events(list[Event]):
        def append(self, event: Event) -> None:
            if event.after is S.AWAKE:  # these run before anybody in line does
                late.extend(asyncio.create_task(ask(f"late {number}")) for number in range(3))

    lifecycle = lifecycle_of(FakeSleeper(), events=Events())
    async with lifecycle:
        await asyncio.gather(*(ask(f"first {number}") for number in range(3)))
        await asyncio.gather(*late)
    assert order == [f"{who} {number}" for who in ("first", "late") for number in range(3)]


@virtual
async def test_the_deadline_holds_when_the_wake_hangs() -> None:
    sleeper = FakeSleeper(faults={"wake": ["hang"]})
    async with lifecycle_of(sleeper, max_wait_s=Duration(30)) as lifecycle:
        began_s = now_s()
        answers = await asyncio.gather(*(lifecycle.wake("m") for _ in range(100)), return_exceptions=True)
        assert now_s() - began_s == pytest.approx(30)
        assert {str(answer) for answer in answers} == {"engine m: did not wake within 30 s (lifecycle.max_wait_s)"}
        assert {type(answer) for answer in answers} == {EngineTimeout}
        assert (lifecycle.state("m"), status_of(lifecycle, "m").waiting) == (S.STARTING, 0)
        await asyncio.sleep(271)
        assert sleeper.log == ["wake", "stop"]
        assert "did not wake within 300 s" in status_of(lifecycle, "m").error


@virtual
async def test_a_model_that_fails_answers_everybody_at_once_and_is_not_tried_again_at_once() -> None:
    sleeper = FakeSleeper(faults={"wake": ["fail", "fail", "fail"]})
    async with lifecycle_of(sleeper) as lifecycle:
        answers = await asyncio.gather(*(ask(lifecycle) for _ in range(3)), return_exceptions=True)
        assert [str(answer) for answer in answers] == ["engine m: no wake today"] * 3
        assert {type(answer) for answer in answers} == {EngineUnavailable}
        for pause_s in (10, 20, 40):
            with pytest.raises(EngineUnavailable, match=rf"tried again in {pause_s}\.0 s: no wake today"):
                await ask(lifecycle)
            await asyncio.sleep(pause_s)
            if pause_s < 40:
                with pytest.raises(EngineUnavailable, match="no wake today"):
                    await ask(lifecycle)
        assert sleeper.log == ["wake", "stop"] * 3
        await ask(lifecycle)
        assert (status_of(lifecycle, "m").error, status_of(lifecycle, "m").failures) == ("", 3)


@virtual
async def test_by_hand_a_model_that_failed_is_tried_again_at_once() -> None:
    sleeper = FakeSleeper(faults={"wake": ["fail"]})
    async with lifecycle_of(sleeper) as lifecycle:
        with pytest.raises(EngineUnavailable):
            await ask(lifecycle)
        await lifecycle.wake("m")


@virtual
async def test_a_fault_of_ours_fails_one_model_and_not_the_others(caplog: pytest.LogCaptureFixture) -> None:
    sleepers = FakeSleeper("a", 50, faults={"warm": ["bug"]}), FakeSleeper("b", 50)
    async with lifecycle_of(*sleepers) as lifecycle:
        with pytest.raises(EngineUnavailable, match="could not wake: ZeroDivisionError"):
            await lifecycle.wake("a")
        await lifecycle.wake("b")
    assert "model a: could not wake" in caplog.text


@virtual
async def test_a_model_that_woke_wrong_is_started_anew_once() -> None:
    sleeper, events = FakeSleeper(faults={"warm": ["wrong"]}), list[Event]()
    async with lifecycle_of(sleeper, events=events) as lifecycle:
        await lifecycle.wake("m")
        assert sleeper.log == ["wake", "warm", "stop", "wake", "warm"]
        assert (status_of(lifecycle, "m").wakes, status_of(lifecycle, "m").failures) == (1, 0)
        assert [event.after for event in events] == [S.STARTING, S.WARMING, S.STARTING, S.WARMING, S.AWAKE]
        assert events[2].reason == "starts anew: says other things than before"


@virtual
async def test_a_model_that_is_started_anew_keeps_its_room() -> None:
    a, b, most = FakeSleeper("a", 60, faults={"warm": ["wrong"]}), FakeSleeper("b", 60), list[int]()
    for sleeper in (a, b):
        sleeper.on_step = lambda: most.append(a.device_bytes + b.device_bytes)
    async with lifecycle_of(a, b) as lifecycle:
        await until(lambda: "stop" in a.log)
        await lifecycle.wake("b")
    assert max(most) == 60


@virtual
async def test_a_model_that_wakes_wrong_twice_has_failed() -> None:
    sleeper = FakeSleeper(faults={"warm": ["wrong", "wrong"]})
    async with lifecycle_of(sleeper) as lifecycle:
        with pytest.raises(EngineUnavailable, match="says other things than before"):
            await lifecycle.wake("m")
        await asyncio.sleep(0.1)
        assert sleeper.log == ["wake", "warm", "stop", "wake", "warm", "stop"]


@virtual
async def test_the_line_is_bounded_and_who_leaves_it_makes_room() -> None:
    async with lifecycle_of(FakeSleeper(faults={"wake": ["hang"]}), max_waiting=2) as lifecycle:
        waiting = [asyncio.create_task(lifecycle.wake("m")) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFull, match="2 requests wait for m"):
            await lifecycle.wake("m")
        waiting[0].cancel()
        await asyncio.sleep(0.1)
        third = asyncio.create_task(lifecycle.wake("m"))
        await asyncio.sleep(0.1)
        assert status_of(lifecycle, "m").waiting == 2
    for task in (waiting[1], third):
        with pytest.raises(EngineUnavailable, match="stopped for good"):
            await task


# --- sizes and first loads ---


@virtual
async def test_each_model_is_loaded_once_at_start_and_never_two_of_unknown_size_at_a_time() -> None:
    sleepers = FakeSleeper("a", 50), FakeSleeper("b", 40), FakeSleeper("c", 30)
    async with lifecycle_of(*sleepers) as lifecycle:
        await asyncio.sleep(60)
        assert [status.awake_bytes for status in lifecycle.statuses()] == [50, 40, 30]
        assert [sleeper.log.count("wake") for sleeper in sleepers] == [1, 1, 1]
        assert lifecycle.state("c") is S.AWAKE
        await asyncio.gather(lifecycle.wake("a"), lifecycle.wake("c"))
        assert [lifecycle.state(name) for name in "abc"] == [S.AWAKE, S.ASLEEP_2, S.AWAKE], "known, they fit together"


@virtual
async def test_a_model_larger_than_its_device_fails_and_the_error_names_both() -> None:
    sleeper = FakeSleeper(size_bytes=101)
    async with lifecycle_of(sleeper) as lifecycle:
        for _ in range(2):
            with pytest.raises(
                EngineUnavailable, match=r"takes 101 bytes.* gpu has 100 .*lifecycle\.devices, max_bytes"
            ):
                await lifecycle.wake("m")
            await asyncio.sleep(11)
        assert sleeper.log == ["wake", "warm", "stop"], "its size is known now"


@virtual
async def test_a_model_that_died_before_it_was_measured_is_measured_the_next_time() -> None:
    class Dying(FakeSleeper):
        async def footprint(self) -> Footprint:
            if not self.deaths:
                self.die()
            return await super().footprint()

    async with lifecycle_of(Dying(size_bytes=70)) as lifecycle:
        await lifecycle.wake("m")
        assert status_of(lifecycle, "m").awake_bytes is None
        await until(lambda: lifecycle.state("m") is S.FAILED)
        await lifecycle.wake("m")
        assert status_of(lifecycle, "m").awake_bytes == 70


@virtual
async def test_a_pinned_model_comes_back_after_another_ones_first_load() -> None:
    pinned, other = FakeSleeper("pinned", 70), FakeSleeper("other", 60)
    async with lifecycle_of(pinned, other, pinned="pinned") as lifecycle:
        await lifecycle.wake("pinned")
        await asyncio.sleep(600)
        assert [lifecycle.state("pinned"), lifecycle.state("other")] == [S.AWAKE, S.ASLEEP_1]
        assert other.log.count("wake") == 1
        with pytest.raises(EngineUnavailable, match="device gpu has 30 for it, beside pinned which is pinned"):
            await lifecycle.wake("other")
        lifecycle.pin("pinned", False)
        await lifecycle.wake("other")


# --- giving way ---


@virtual
async def test_a_model_gives_way_when_the_others_wait_and_stores_its_kv_before() -> None:
    a, b = FakeSleeper("a"), FakeSleeper("b")
    async with measured(a, b) as lifecycle:
        began_s = now_s()
        await lifecycle.wake("a")
        assert b.log == ["keep", "sleep 1"]
        assert a.log == ["wake", "warm"]
        assert now_s() - began_s == pytest.approx(2.0 + 0.6 + 1.1), "min_awake_s, then to sleep, then awake"


@virtual
async def test_nobody_is_put_to_sleep_with_requests_in_flight() -> None:
    a, b = FakeSleeper("a"), FakeSleeper("b")
    async with measured(a, b) as lifecycle:
        long = asyncio.create_task(held_for(lifecycle, b, 100))
        await asyncio.sleep(20)
        waiting = asyncio.create_task(lifecycle.wake("a"))
        await asyncio.sleep(1)
        assert (lifecycle.state("b"), b.log) == (S.DRAINING, []), "its turn is over, its request is not"
        late = asyncio.create_task(lifecycle.wake("b"))
        await waiting
        assert long.done()
        assert not late.done()
        await late


@virtual
async def test_a_model_works_on_when_those_that_wanted_its_room_have_left() -> None:
    a, b = FakeSleeper("a"), FakeSleeper("b")
    async with measured(a, b) as lifecycle:
        long = asyncio.create_task(held_for(lifecycle, b, 60))
        await asyncio.sleep(20)
        waiting = asyncio.create_task(lifecycle.wake("a"))
        await asyncio.sleep(1)
        late = asyncio.create_task(lifecycle.wake("b"))
        await asyncio.sleep(1)
        assert not late.done()
        waiting.cancel()
        await late
        assert (lifecycle.state("b"), long.done()) == (S.AWAKE, False)
        await long


@virtual
async def test_while_a_turn_lasts_a_model_serves_whoever_comes_for_it() -> None:
    a, b = FakeSleeper("a"), FakeSleeper("b")
    async with measured(a, b) as lifecycle:
        busy = asyncio.create_task(held_for(lifecycle, b, 5))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(lifecycle.wake("a"))
        await asyncio.sleep(3)
        await asyncio.wait_for(lifecycle.wake("b"), 0.01)
        assert not waiting.done()
        await asyncio.gather(busy, waiting)


# --- sleeping ---


@virtual
async def test_a_model_that_nobody_asks_for_goes_to_sleep_and_then_deeper() -> None:
    sleeper, events = FakeSleeper(), list[Event]()
    async with measured(sleeper, events=events) as lifecycle:
        await asyncio.sleep(299)
        assert sleeper.log == []
        await asyncio.sleep(3)
        assert (lifecycle.state("m"), sleeper.log) == (S.ASLEEP_1, ["keep", "sleep 1"])
        assert "nobody asked for it for 300 s" in [event.reason for event in events]
        await asyncio.sleep(3601)
        assert (lifecycle.state("m"), sleeper.log[2:]) == (S.ASLEEP_2, ["sleep 2"])
        await lifecycle.wake("m")


@pytest.mark.parametrize(("fault", "state"), [("wrong", S.ASLEEP_1), ("fail", S.ASLEEP_1), ("hang", S.FAILED)])
def test_a_store_that_fails_costs_the_kv_and_not_the_sleep(fault: Any, state: ModelState) -> None:
    @virtual
    async def test() -> None:
        sleeper = FakeSleeper(faults={"keep": [fault]})
        async with measured(sleeper) as lifecycle:
            await asyncio.sleep(400)
            assert lifecycle.state("m") is state
            assert sleeper.log[1:] == (["stop"] if fault == "hang" else ["sleep 1"])

    test()


@virtual
async def test_a_model_that_cannot_be_put_to_sleep_is_stopped_and_its_room_is_free() -> None:
    a, b = FakeSleeper("a"), FakeSleeper("b", faults={"sleep 1": ["hang"]})
    async with measured(a, b) as lifecycle:
        await lifecycle.wake("a")
        assert (lifecycle.state("b"), b.log) == (S.FAILED, ["keep", "sleep 1", "stop"])
        assert status_of(lifecycle, "b").footprint == Footprint(device_bytes=0)


@virtual
async def test_host_memory_for_sleepers_is_bounded() -> None:
    a, b = FakeSleeper("a", host_1_bytes=60), FakeSleeper("b", host_1_bytes=60)
    async with measured(a, b, host_max_bytes=ByteSize(100)) as lifecycle:
        await lifecycle.sleep("b")
        await lifecycle.wake("a")
        await lifecycle.sleep("a")
        await asyncio.sleep(1)
        assert [lifecycle.state("a"), lifecycle.state("b")] == [S.ASLEEP_1, S.ASLEEP_2]


@virtual
async def test_a_model_that_woke_leaves_its_host_memory_to_others() -> None:
    a, b = FakeSleeper("a", 50, host_1_bytes=60), FakeSleeper("b", 50, host_1_bytes=60)
    async with measured(a, b, host_max_bytes=ByteSize(100)) as lifecycle:
        await lifecycle.wake("a")
        await lifecycle.sleep("a")
        await lifecycle.wake("a")
        await lifecycle.sleep("b")
        await asyncio.sleep(1)
        assert [lifecycle.state("a"), lifecycle.state("b")] == [S.AWAKE, S.ASLEEP_1]


# --- by hand ---


@virtual
async def test_sleep_by_hand_waits_for_requests_and_the_next_one_wakes_it_again() -> None:
    sleeper = FakeSleeper()
    async with measured(sleeper, pinned="m") as lifecycle:
        busy = asyncio.create_task(held_for(lifecycle, sleeper, 5))
        await asyncio.sleep(1)
        going = asyncio.create_task(lifecycle.sleep("m", 2))
        await asyncio.sleep(1)
        late = asyncio.create_task(lifecycle.wake("m"))
        await going
        assert busy.done()
        assert (sleeper.log, status_of(lifecycle, "m").pinned) == (["keep", "sleep 2"], False)
        await late
        assert lifecycle.state("m") is S.AWAKE


@virtual
async def test_sleep_by_hand_gives_up_on_a_model_that_stays_in_use() -> None:
    sleeper = FakeSleeper()
    async with measured(sleeper) as lifecycle:
        busy = asyncio.create_task(held_for(lifecycle, sleeper, 500))
        await asyncio.sleep(1)
        with pytest.raises(EngineTimeout, match=r"is still draining after 120 s, with 1 requests in flight"):
            await lifecycle.sleep("m")
        await asyncio.sleep(0.1)
        assert (lifecycle.state("m"), busy.done(), sleeper.log) == (S.AWAKE, False, [])
        busy.cancel()


@virtual
async def test_sleep_by_hand_leaves_alone_what_rests_and_takes_it_deeper_if_told() -> None:
    sleeper = FakeSleeper()
    async with measured(sleeper) as lifecycle:
        await lifecycle.sleep("m")
        await lifecycle.sleep("m", 1)
        assert sleeper.log == ["keep", "sleep 1"]
        await lifecycle.sleep("m", 2)
        await lifecycle.sleep("m", 1)
        assert (sleeper.log[2:], lifecycle.state("m")) == (["sleep 2"], S.ASLEEP_2)


@virtual
async def test_sleep_by_hand_tells_when_it_did_not_succeed() -> None:
    sleeper = FakeSleeper(faults={"sleep 1": ["fail"]})
    async with measured(sleeper) as lifecycle:
        with pytest.raises(EngineUnavailable, match="could not be put to sleep, and was stopped: no sleep 1 today"):
            await lifecycle.sleep("m")


@virtual
async def test_a_pinned_model_stays_awake_and_one_that_is_no_longer_pinned_does_not() -> None:
    sleeper = FakeSleeper()
    async with measured(sleeper, pinned="m") as lifecycle:
        await asyncio.sleep(3600)
        assert sleeper.log == []
        lifecycle.pin("m", False)
        await asyncio.sleep(1)
        assert sleeper.log == ["keep", "sleep 1"]


@virtual
async def test_an_expected_use_wakes_a_model_and_keeps_it_awake_until_then() -> None:
    sleeper = FakeSleeper()
    async with measured(sleeper) as lifecycle:
        await lifecycle.sleep("m")
        lifecycle.expect("m", UNIX_S + now_s() + 1000)
        assert status_of(lifecycle, "m").expected_until_s == pytest.approx(UNIX_S + now_s() + 1000)
        await asyncio.sleep(990)
        assert lifecycle.state("m") is S.AWAKE
        await asyncio.sleep(20)
        assert (lifecycle.state("m"), status_of(lifecycle, "m").expected_until_s) == (S.ASLEEP_1, None)


async def test_a_device_that_is_not_configured_is_refused() -> None:
    managed = Managed(name="m", device="gpu1", sleeper=FakeSleeper())
    with pytest.raises(BadSetting, match=r"no device 'gpu1' in lifecycle\.devices \(there: none\)"):
        Lifecycle([managed], LifecycleSettings())


@virtual
async def test_a_model_that_is_not_there_is_refused() -> None:
    async with lifecycle_of(FakeSleeper("a"), FakeSleeper("b")) as lifecycle:
        with pytest.raises(NotFound, match=r"no engine x that may sleep \(there: a, b\)"):
            await lifecycle.wake("x")


# --- processes that end by themselves ---


@virtual
async def test_a_model_whose_process_ends_is_woken_again_after_a_while_for_those_who_ask() -> None:
    sleeper = FakeSleeper()
    async with measured(sleeper) as lifecycle:
        for pause_s in (0.25, 0.5, 1.0):
            sleeper.die()
            await until(lambda: lifecycle.state("m") is S.FAILED)
            died_s = now_s()
            assert "ended by itself: out of memory" in status_of(lifecycle, "m").error
            await ask(lifecycle)
            assert now_s() - died_s == pytest.approx(pause_s + 1.1, abs=0.01)
        assert sleeper.log == ["stop", "wake", "warm"] * 3


@virtual
async def test_who_waits_for_a_model_that_dies_while_it_drains_is_served_by_its_next_process() -> None:
    a, b = FakeSleeper("a"), FakeSleeper("b")
    async with measured(a, b) as lifecycle:
        busy = asyncio.create_task(held_for(lifecycle, b, 60))
        await asyncio.sleep(16)
        others = asyncio.create_task(lifecycle.wake("a"))
        await asyncio.sleep(1)
        late = asyncio.create_task(lifecycle.wake("b"))
        await asyncio.sleep(1)
        busy.cancel()
        b.die()
        await others
        await late
        assert b.log == ["stop", "wake", "warm"]


@virtual
async def test_a_model_that_dies_asleep_has_stopped() -> None:
    sleeper = FakeSleeper()
    async with measured(sleeper) as lifecycle:
        await lifecycle.sleep("m")
        sleeper.die()
        await asyncio.sleep(0.1)
        assert lifecycle.state("m") is S.STOPPED
        await lifecycle.wake("m")


@pytest.mark.parametrize("method", ["warm", "keep", "sleep 1"])
def test_a_process_that_ends_while_it_hangs_is_not_waited_for(method: str) -> None:
    @virtual
    async def test() -> None:
        sleeper = FakeSleeper(faults={method: ["hang"]})
        async with lifecycle_of(sleeper, level_1_after_s=Duration(5)) as lifecycle:
            await until(lambda: method in sleeper.log)
            sleeper.die()
            await until(lambda: lifecycle.state("m") is S.FAILED, within_s=1)
            assert "ended by itself: out of memory" in status_of(lifecycle, "m").error

    test()


# --- the end, and what others are told ---


@virtual
async def test_at_the_end_all_models_stop_and_who_waits_is_told() -> None:
    a, b, events = FakeSleeper("a", faults={"wake": ["hang"]}), FakeSleeper("b"), list[Event]()
    lifecycle = lifecycle_of(a, b, events=events)
    async with lifecycle:
        waiting = asyncio.create_task(lifecycle.wake("a"))
        await asyncio.sleep(1)
    with pytest.raises(EngineUnavailable, match="stopped for good"):
        await waiting
    with pytest.raises(EngineUnavailable, match="stopped for good"):
        await lifecycle.wake("b")
    assert [a.where, b.where] == ["stopped", "stopped"]
    assert events[-1].after is S.STOPPED


@virtual
async def test_a_model_that_does_not_even_stop_keeps_its_room() -> None:
    a, b = FakeSleeper("a"), FakeSleeper("b", faults={"sleep 1": ["fail"]})
    async with measured(a, b, max_wait_s=Duration(200)) as lifecycle:
        b.stop_hangs = True
        with pytest.raises(EngineTimeout, match="did not wake within 200 s"):
            await lifecycle.wake("a")
        assert a.log == []
        b.stop_hangs = False


@virtual
async def test_every_transition_is_told_and_is_one_that_may_be() -> None:
    a, b, events = FakeSleeper("a"), FakeSleeper("b"), list[Event]()
    async with measured(a, b, events=events) as lifecycle:
        await lifecycle.sleep("b", 1)
        await lifecycle.sleep("b", 2)
        await lifecycle.wake("a")
    states = {"a": S.STOPPED, "b": S.STOPPED}
    for event in events:
        assert event.before is states[event.model]
        assert event.after in TRANSITIONS[event.before]
        assert event.at_s > UNIX_S
        assert event.reason
        states[event.model] = event.after
    assert states == {"a": S.STOPPED, "b": S.STOPPED}
    [slept] = [event for event in events if event.after is S.ASLEEP_1]
    assert slept.seconds == pytest.approx({"keep": 0.1, "sleep": 0.5})
