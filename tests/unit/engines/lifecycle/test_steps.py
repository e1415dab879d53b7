from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from fakes.fill_engine import FakeFillEngine
from fakes.sleeper import FakeSleeper
from fakes.virtual_time import now_s, virtual
from nightfill.config import ByteSize, DeviceSettings, Duration, LifecycleSettings
from nightfill.engines.engine import Prefix, Way
from nightfill.engines.lifecycle.lifecycle import Lifecycle, Managed
from nightfill.engines.lifecycle.sleeping import SleepingEngine
from nightfill.engines.lifecycle.state import ModelState
from nightfill.errors import EngineTimeout, EngineUnavailable, SentToSleep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PREFIX = Prefix(tokens=range(1000), salt=b"")


class House:
    """Model `a` fills, model `b` has live requests, and there is memory for one of them."""

    def __init__(self) -> None:
        self.sleepers = {"a": FakeSleeper("a"), "b": FakeSleeper("b")}
        settings = LifecycleSettings(
            devices=(DeviceSettings(name="gpu", max_bytes=ByteSize(100)),), max_wait_s=Duration(60)
        )
        managed = [Managed(name=name, device="gpu", sleeper=sleeper) for name, sleeper in self.sleepers.items()]
        self.lifecycle = Lifecycle(managed, settings, clock=now_s)
        self.inner = FakeFillEngine()
        self.engine = SleepingEngine(self.inner, self.lifecycle, name="a")

    @contextlib.asynccontextmanager
    async def opened(self, awake: str) -> AsyncIterator[None]:
        async with self.lifecycle:
            for name in sorted(self.sleepers, key=awake.__eq__):
                await self.lifecycle.wake(name)
            yield
        assert [sleeper.breaches for sleeper in self.sleepers.values()] == [[], []]


@virtual
async def test_a_fill_lets_others_have_the_room_between_its_steps_and_goes_on_from_what_it_stored() -> None:
    house = House()
    async with house.opened("a"), house.engine.fill(PREFIX) as fill:
        assert await fill.resume() == 0
        assert (await fill.extend(300)).reached == 300
        assert await fill.keep() == 300
        assert (await fill.extend(400)).reached == 400
        await asyncio.wait_for(house.lifecycle.wake("b"), 10)
        assert house.lifecycle.state("a") is ModelState.ASLEEP_1
        house.inner.log.computed = 0
        await asyncio.sleep(20)  # until nobody uses b
        assert (await fill.extend(1000)).reached == 1000
        assert house.inner.log.computed == 700, "what was not stored is computed again, the rest is not"
        assert await fill.keep() == 1000
        assert await fill.prove() == 1000
        assert house.inner.log.open_fills == 1
    assert house.inner.log.open_fills == 0


@virtual
async def test_what_was_lost_with_the_model_is_not_said_to_be_kept() -> None:
    house = House()
    async with house.opened("a"), house.engine.fill(PREFIX) as fill:
        await fill.discard()
        await fill.extend(300)
        await fill.keep()
        await fill.extend(900)
        await house.lifecycle.wake("b")
        await asyncio.sleep(20)
        assert await fill.keep() == 300


@virtual
async def test_samples_begin_anew_after_the_model_slept() -> None:
    house = House()
    async with house.opened("a"), house.engine.sampler(PREFIX) as sampler:
        await sampler.sample((1,), Way.OWN, max_tokens=1)
        await house.lifecycle.wake("b")
        await asyncio.sleep(20)
        await sampler.sample((1,), Way.COLD, max_tokens=1)
        assert house.inner.log.ways == [Way.OWN, Way.COLD]
        assert house.sleepers["a"].log.count("wake") == 2


@virtual
async def test_background_work_does_not_push_out_whom_others_use() -> None:
    house = House()

    async def ask_again_and_again() -> None:
        while True:
            async with house.lifecycle.use("b"):
                await asyncio.sleep(1)
            await asyncio.sleep(5)

    async with house.opened("b"), house.engine.fill(PREFIX) as fill:
        live = asyncio.create_task(ask_again_and_again())
        with pytest.raises(EngineTimeout, match="was not awake, and found no free room, within 60 s"):
            await fill.resume()
        assert house.sleepers["b"].log.count("wake") == 1
        going_on = asyncio.create_task(fill.resume())
        await asyncio.sleep(1)
        await house.lifecycle.wake("a")
        assert await going_on == 0, "it is awake for others"
        live.cancel()


@virtual
async def test_work_under_way_does_not_wake_what_somebody_put_to_sleep_and_later_work_does() -> None:
    house = House()
    async with house.opened("a"):
        said = await house.engine.describe()
        work = house.engine.at_work()
        async with work.fill(PREFIX) as fill:
            await fill.extend(300)
            await house.lifecycle.sleep("a")
            with pytest.raises(SentToSleep, match="engine a: was sent to sleep by hand"):
                await fill.keep()
        with pytest.raises(SentToSleep):
            await work.tokenize("x")
        async with work.fill(PREFIX) as fill, work.sampler(PREFIX) as sampler:
            with pytest.raises(SentToSleep):
                await fill.resume()
            with pytest.raises(SentToSleep):
                await sampler.sample((1,), Way.OWN, max_tokens=1)
        assert await work.describe() is said, "known, and not asked again"
        await asyncio.sleep(100)
        assert house.lifecycle.state("a") is ModelState.ASLEEP_1
        async with house.engine.at_work().fill(PREFIX) as later:
            assert await later.resume() == 0
        assert house.lifecycle.state("a") is ModelState.AWAKE
        async with work.fill(PREFIX) as fill:
            assert await fill.resume() == 0, "somebody else woke it"


@virtual
async def test_work_that_waits_for_room_ends_when_its_model_is_put_to_sleep_by_hand() -> None:
    house = House()
    house.lifecycle.pin("b", True)
    async with house.opened("b"), house.engine.fill(PREFIX) as fill:
        waiting = asyncio.create_task(fill.resume())
        await asyncio.sleep(1)
        await house.lifecycle.sleep("a")
        with pytest.raises(SentToSleep):
            await waiting
        house.lifecycle.pin("b", False)
        await asyncio.sleep(100)
        assert house.sleepers["a"].log.count("wake") == 1


@virtual
async def test_background_work_is_told_when_the_model_fails_and_when_all_is_over() -> None:
    house = House()
    async with house.opened("b"), house.engine.fill(PREFIX) as fill:
        house.sleepers["a"].faults["wake"] = ["fail"]
        await asyncio.sleep(20)
        with pytest.raises(EngineUnavailable, match="no wake today"):
            await fill.resume()
        await asyncio.sleep(10)
        house.lifecycle.pin("b", True)
        waiting = asyncio.create_task(fill.resume())
        await asyncio.sleep(1)
        assert not waiting.done()
    with pytest.raises(EngineUnavailable, match="stopped for good"):
        await waiting
