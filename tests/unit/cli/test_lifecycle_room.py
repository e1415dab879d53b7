from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest

from fakes.sleeper import FakeSleeper
from nightfill.cli.lifecycle_room import LifecycleRoom, needed_until_s
from nightfill.config import (
    AdapterSettings,
    ByteSize,
    DeviceSettings,
    Duration,
    EngineSettings,
    LifecycleSettings,
    Settings,
    SleepSettings,
)
from nightfill.contexts.context import Form, Tenant
from nightfill.engines.lifecycle.lifecycle import Managed
from nightfill.engines.lifecycle.state import ModelState
from nightfill.sleep.slumber import awake_of
from nightfill.sleep.windows import wakes_of
from nightfill.state.access import Access
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from pathlib import Path

MONDAY = datetime(2026, 6, 1, tzinfo=UTC)
NINE = Counter(int((MONDAY + timedelta(days=day, hours=9)).timestamp() // 3600) for day in range(5))
"""Asked at nine on each day of a week, in UTC."""


def unix(clock: str) -> float:
    """On the Saturday after."""
    return datetime.fromisoformat(f"2026-06-06 {clock}").replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("crons", "hours", "now", "until"),
    [
        pytest.param((), {}, "08:00", None, id="nothing is known"),
        pytest.param(("0 8 * * *",), {}, "07:59", None, id="too early for the cron"),
        pytest.param(("0 8 * * *",), {}, "07:59:50", "08:05", id="it begins to wake, to be awake at eight"),
        pytest.param(("0 8 * * *",), {}, "08:04", "08:05", id="it stays for a while"),
        pytest.param(("0 8 * * *",), {}, "08:05", None, id="and then need not"),
        pytest.param(("0 8 * * *", "2 8 * * *"), {}, "08:03", "08:07", id="spans may overlap"),
        pytest.param((), NINE, "08:58", None, id="too early for the forecast"),
        pytest.param((), NINE, "08:58:50", "11:00", id="it wakes ahead"),
        pytest.param((), NINE, "10:59", "11:00", id="it stays while the use may begin"),
        pytest.param((), NINE, "11:00", None, id="nobody came"),
        pytest.param(("55 8 * * *",), NINE, "08:59", "11:00", id="the longer of both"),
    ],
)
def test_a_model_wakes_before_it_is_needed(
    crons: tuple[str, ...], hours: Counter[int], now: str, until: str | None
) -> None:
    windows = wakes_of(crons, key="engines.0.wake_at", length_s=300, zone="UTC")
    found = needed_until_s(windows, hours, now_s=unix(now), wake_s=10, ahead_s=60)
    assert found == (None if until is None else unix(until))


def settings(*, wake_at: tuple[str, ...] = ()) -> Settings:
    return Settings(
        engines=(EngineSettings(name="a", model="m", device="ram", wake_at=wake_at),),
        lifecycle=LifecycleSettings(
            devices=(DeviceSettings(name="ram", max_bytes=ByteSize(1 << 30)),), level_1_after_s=Duration(600)
        ),
        sleep=SleepSettings(),
    )


def asked(at_s: float) -> Access:
    return Access(
        at_s=at_s,
        tenant=Tenant("default"),
        context=None,
        fingerprint=None,
        form=Form.CHAT,
        model="model-a",
        layer="cold",
        prompt_tokens=1,
        promised_tokens=0,
        reused_tokens=0,
        output_tokens=1,
        ttft_s=0.1,
        total_s=0.1,
        restore_s=0.0,
        status=200,
    )


async def wakes_by_itself(folder: Path, room: LifecycleRoom, past: list[Access]) -> None:
    """And workers hear of it."""
    async with asyncio.timeout(10), open_state(folder / "state.db") as state, room.lifecycle:
        await state.access.append(past)
        await room.lifecycle.wake("a")
        await room.lifecycle.sleep("a")
        async with room.looked_after(state, {"a": "model-a", "a:lora": "lora"}, asyncio.Event()):
            while True:
                if "a" in awake_of(await state.engines.notes(), now_s=time.time()):
                    break
                await asyncio.sleep(0.01)
        assert room.lifecycle.state("a") is ModelState.AWAKE
        assert room.lifecycle.statuses()[0].expected_until_s is not None
        names = {one.name for one in room.samples()}
        assert names >= {"model_state", "model_wakes_total", "model_wake_seconds_total"}


def room_of(wanted: Settings) -> LifecycleRoom:
    sleeper = FakeSleeper(wake_s=0.0, warm_s=0.0, keep_s=0.0, sleep_s=0.0)
    return LifecycleRoom([Managed(name="a", device="ram", sleeper=sleeper)], wanted)


async def test_a_cron_wakes_a_model_and_workers_hear_of_it(tmp_path: Path) -> None:
    await wakes_by_itself(tmp_path, room_of(settings(wake_at=("* * * * *",))), [])


async def test_a_habit_in_the_access_log_wakes_a_model(tmp_path: Path) -> None:
    past = [asked(time.time() - days * 86400.0) for days in (1, 2, 3)]
    await wakes_by_itself(tmp_path, room_of(settings()), past)


async def test_a_habit_of_asking_for_an_adapter_wakes_its_model(tmp_path: Path) -> None:
    adapters = (AdapterSettings(name="lora", path="l.gguf"),)
    wanted = settings()
    engine = msgspec.structs.replace(wanted.engines[0], adapters=adapters)
    room = room_of(msgspec.structs.replace(wanted, engines=(engine,)))
    past = [replace(asked(time.time() - days * 86400.0), model="lora") for days in (1, 2, 3)]
    await wakes_by_itself(tmp_path, room, past)


async def test_no_habit_counts_where_forecasts_are_off(tmp_path: Path) -> None:
    wanted = settings()
    wanted = msgspec.structs.replace(wanted, lifecycle=msgspec.structs.replace(wanted.lifecycle, forecast=False))
    past = [asked(time.time() - days * 86400.0) for days in (1, 2, 3)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await wakes_by_itself(tmp_path, room_of(wanted), past)
