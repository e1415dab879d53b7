from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec
import pytest

from fakes.fill_engine import FakeFillEngine
from fakes.sleeper import FakeSleeper
from fakes.virtual_time import now_s, virtual
from nightfill.config import ByteSize, DeviceSettings, LifecycleSettings
from nightfill.contexts.context import Form, Text
from nightfill.engines.engine import Call, Prefix, Tokens, Way
from nightfill.engines.lifecycle.lifecycle import Lifecycle, Managed
from nightfill.engines.lifecycle.sleeping import SleepingEngine
from nightfill.engines.lifecycle.state import ModelState
from nightfill.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.engines.engine import Engine

PREFIX = Prefix(tokens=range(100), salt=b"")
MESSAGES = msgspec.Raw(msgspec.json.encode([{"role": "user", "content": "rain"}]))
CALL = Call(path="/v1/chat/completions", body={"messages": MESSAGES}, stream=False)


class Guarded(FakeFillEngine):
    """An engine that must not be asked anything while its model is not awake."""

    def __init__(self, sleeper: FakeSleeper) -> None:
        super().__init__()
        self.sleeper = sleeper

    def check(self) -> None:
        assert self.sleeper.is_warm, "a request reached a model that is not awake"
        super().check()


@contextlib.asynccontextmanager
async def house(sleeper: FakeSleeper) -> AsyncIterator[tuple[SleepingEngine, Lifecycle]]:
    settings = LifecycleSettings(devices=(DeviceSettings(name="gpu", max_bytes=ByteSize(100)),))
    managed = Managed(name="m", device="gpu", sleeper=sleeper)
    async with Lifecycle([managed], settings, clock=now_s) as lifecycle:
        yield SleepingEngine(Guarded(sleeper), lifecycle, name="m"), lifecycle


@virtual
async def test_whatever_is_asked_of_it_wakes_it_first() -> None:
    sleeper = FakeSleeper()
    async with house(sleeper) as (engine, lifecycle):
        as_engine: Engine = engine
        await as_engine.describe()
        await lifecycle.sleep("m")
        assert await as_engine.prefix_tokens(Text("abc"), Form.COMPLETION)
        await lifecycle.sleep("m")
        assert await as_engine.tokenize("ab") == (97, 98)
        await lifecycle.sleep("m")
        async with as_engine.open(CALL) as reply:
            assert b"About rain" in b"".join([chunk async for chunk in reply.chunks()])
        await lifecycle.sleep("m")
        async with as_engine.fill(PREFIX) as fill:
            assert (await fill.extend(10)).reached == 10
        await lifecycle.sleep("m")
        async with as_engine.sampler(PREFIX) as sampler:
            await sampler.sample((1,), Way.COLD, max_tokens=1)
        assert sleeper.log.count("wake") == 6


@virtual
async def test_it_is_described_without_waking_once_it_was_up() -> None:
    sleeper = FakeSleeper()
    async with house(sleeper) as (engine, lifecycle):
        description = await engine.describe()
        await lifecycle.sleep("m")
        assert await engine.describe() is description
        assert engine.near(PREFIX) is None
        assert lifecycle.state("m") is ModelState.ASLEEP_1


@virtual
async def test_a_reply_says_how_long_it_waited_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nightfill.engines.lifecycle.sleeping.time.perf_counter", now_s)
    async with house(FakeSleeper()) as (engine, _):
        async with engine.open(CALL) as reply:
            assert reply.queued_s == pytest.approx(1.1)
            assert (reply.status, reply.content_type, reply.restore_s) == (200, "application/json", 0)
            assert (reply.weighed, reply.loaded_tokens) == (None, 0)
            assert reply.tokens == Tokens(prompt=5, reused=0, output=10)
        async with engine.open(CALL) as reply:
            assert reply.queued_s == pytest.approx(0)


@virtual
async def test_it_does_not_fall_asleep_before_its_answer_has_ended() -> None:
    sleeper = FakeSleeper()
    async with house(sleeper) as (engine, lifecycle):
        async with engine.open(CALL) as reply:
            going = asyncio.create_task(lifecycle.sleep("m"))
            await asyncio.sleep(10)
            async for _ in reply.chunks():
                assert not going.done()
        await going
        assert sleeper.log == ["wake", "warm", "keep", "sleep 1"]


@virtual
async def test_it_is_well_while_it_sleeps_and_not_when_it_failed() -> None:
    sleeper = FakeSleeper(faults={"wake": ["fail"]})
    async with house(sleeper) as (engine, lifecycle):
        with pytest.raises(EngineUnavailable, match="no wake today"):
            await engine.describe()
        assert not await engine.healthy()
        await asyncio.sleep(10)
        await engine.describe()
        await lifecycle.sleep("m")
        assert await engine.healthy()


@virtual
async def test_it_is_not_frozen_since_that_would_hold_it_awake() -> None:
    async with house(FakeSleeper()) as (engine, _):
        inner = engine._engine
        assert isinstance(inner, FakeFillEngine)
        assert inner.freezes
        assert not engine.freezes
        engine.freeze()
        engine.thaw()
        assert not inner.frozen
        await engine.aclose()
        assert inner.closed
