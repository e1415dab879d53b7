from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from fakes.sleeper import FakeSleeper
from fakes.virtual_time import now_s, until, virtual
from nightfill.config import ByteSize, DeviceSettings, Duration, LifecycleSettings
from nightfill.engines.lifecycle.lifecycle import Event, Lifecycle, Managed, Status
from nightfill.engines.lifecycle.state import ModelState
from nightfill.errors import EngineTimeout, EngineUnavailable, QueueFull

if TYPE_CHECKING:
    from collections.abc import Sequence

S = ModelState


def lifecycle_of(
    sleepers: Sequence[FakeSleeper],
    *,
    max_bytes: int = 100,
    pinned: Sequence[str] = (),
    events: Any = None,
    **given: Any,
) -> Lifecycle:
    settings = LifecycleSettings(devices=(DeviceSettings(name="gpu", max_bytes=ByteSize(max_bytes)),), **given)
    managed = [
        Managed(name=sleeper.name, device="gpu", sleeper=sleeper, pinned=sleeper.name in pinned) for sleeper in sleepers
    ]
    record = None if events is None else events.append
    return Lifecycle(managed, settings, clock=now_s, wall=now_s, on_event=record)


@virtual
async def test_a_hundred_first_requests_wake_a_model_once_and_warm_it_once() -> None:
    sleeper, order = FakeSleeper(), []
    async with lifecycle_of([sleeper]) as lifecycle:

        async def ask(number: int) -> None:
            async with lifecycle.use("m"):
                assert sleeper.is_warm
                order.append(number)

        await asyncio.gather(*(ask(number) for number in range(100)))
    assert sleeper.log == ["wake", "warm", "stop"]
    assert order == list(range(100))
