"""With a stand-in for the `vllm` program: which calls are made, and that none gets to a server that sleeps."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fakes.vllm_servers import gone, noted, server_of
from nightfill.engines.lifecycle.sleeper import Footprint
from nightfill.engines.supervised import State
from nightfill.engines.vllm import memory
from nightfill.engines.vllm import sleeper as sleeper_module
from nightfill.engines.vllm.engine import VllmEngine
from nightfill.engines.vllm.sleeper import VllmSleeper
from nightfill.errors import EngineError, EngineStart, EngineUnavailable, WokeWrong

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from nightfill.engines.lifecycle.sleeper import Sleeper
    from nightfill.engines.vllm.server import VllmServer
    from nightfill.kv.store import Store

    Make = Callable[..., tuple[VllmSleeper, VllmServer]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[VllmSleeper] = []

    def make(mood: str = "works", *, cpu: bool = True, **given: Any) -> tuple[VllmSleeper, VllmServer]:
        server = server_of(mood, tmp_path, again=False, **given)
        sleeper: Sleeper = VllmSleeper(server, cpu=cpu, start_timeout_s=30)
        assert isinstance(sleeper, VllmSleeper)
        made.append(sleeper)
        return sleeper, server

    yield make
    for sleeper in made:
        await sleeper.stop()


def calls(folder: Path) -> list[str]:
    return [call for call in noted(folder, "calls") if call != "/v1/completions"]


async def test_level_1_and_back(make: Make, tmp_path: Path) -> None:
    sleeper, server = make()
    assert sleeper.levels == {1, 2}
    woken = await sleeper.wake()
    assert (list(woken.seconds), woken.fresh) == (["process"], True)
    await sleeper.warm()
    await sleeper.keep()
    await sleeper.sleep(1)
    with pytest.raises(EngineUnavailable, match="is asleep"):
        _ = server.url
    woken = await sleeper.wake()
    assert list(woken.seconds) == ["load"]
    assert server.url == server.base
    await sleeper.warm()
    assert calls(tmp_path) == ["/sleep?level=1", "/wake_up"]


async def test_after_level_2_weights_come_before_memory_for_kv_and_the_prefix_cache_is_reset(
    make: Make, tmp_path: Path
) -> None:
    sleeper, _ = make()
    await sleeper.wake()
    await sleeper.warm()
    await sleeper.sleep(2)
    woken = await sleeper.wake()
    assert list(woken.seconds) == ["load", "reset"]
    await sleeper.warm()
    assert calls(tmp_path) == [
        "/sleep?level=2",
        "/wake_up?tags=weights",
        "/collective_rpc reload_weights",
        "/wake_up?tags=kv_cache",
        "/reset_prefix_cache",
    ]


async def test_from_level_1_to_level_2_the_process_ends_and_waking_starts_it(make: Make, tmp_path: Path) -> None:
    sleeper, server = make()
    await sleeper.wake()
    fallen = asyncio.create_task(sleeper.ended())
    await sleeper.sleep(1)
    await sleeper.sleep(1)
    await sleeper.sleep(2)
    assert (server.pid, await sleeper.footprint()) == (None, Footprint(device_bytes=0))
    assert list((await sleeper.wake()).seconds) == ["process"]
    assert calls(tmp_path) == ["/sleep?level=1", "SIGTERM"]
    assert not fallen.done(), "it did not end by itself"
    fallen.cancel()


async def test_no_request_of_an_engine_gets_to_a_server_that_sleeps(make: Make, tmp_path: Path, store: Store) -> None:
    sleeper, server = make()
    engine = VllmEngine(server.settings, store=store, block_tokens=32, server=server)
    assert not await engine.healthy()
    await sleeper.wake()
    assert await engine.healthy()
    await sleeper.sleep(1)
    with pytest.raises(EngineUnavailable, match="is asleep"):
        await engine.prefill([1, 2, 3], salt=bytes(32))
    with pytest.raises(EngineUnavailable, match="is asleep"):
        await engine.describe()
    assert not await engine.healthy()
    assert noted(tmp_path, "calls") == ["/sleep?level=1"]
    await engine.aclose()
    assert server.state is State.STOPPED, "the engine's own server ends with it"


async def test_weights_that_came_back_wrong_are_noticed_and_starting_anew_mends_it(make: Make) -> None:
    sleeper, _ = make("forgetful")
    await sleeper.wake()
    await sleeper.warm()
    await sleeper.warm()
    await sleeper.sleep(1)
    await sleeper.wake()
    with pytest.raises(WokeWrong, match="continues a probe otherwise"):
        await sleeper.warm()
    await sleeper.stop()
    await sleeper.wake()
    await sleeper.warm()


async def test_another_process_may_have_read_other_weights(make: Make) -> None:
    sleeper, _ = make("another")
    for _ in range(2):
        await sleeper.wake()
        await sleeper.warm()
        await sleeper.stop()


async def test_a_server_that_does_not_fall_asleep_is_an_error(make: Make) -> None:
    sleeper, server = make("insomniac")
    await sleeper.wake()
    with pytest.raises(EngineError, match="does not sleep"):
        await sleeper.sleep(1)
    await sleeper.stop()
    await sleeper.wake()
    assert server.url, "as after any start"


async def test_a_prefix_cache_that_cannot_be_reset_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeper_module, "_RESET_S", 0.001)
    sleeper, _ = make("busy")
    await sleeper.wake()
    await sleeper.sleep(2)
    with pytest.raises(EngineError, match="does not reset its prefix cache"):
        await sleeper.wake()


async def test_waking_that_is_given_up_can_be_tried_again_after_a_stop(make: Make) -> None:
    sleeper, server = make("drowsy", stop_s=0.1)
    await sleeper.wake()
    await sleeper.sleep(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await sleeper.wake()
    with pytest.raises(EngineUnavailable, match="is asleep"):
        _ = server.url
    await sleeper.stop()
    assert list((await sleeper.wake()).seconds) == ["process"]


async def test_a_server_that_falls_while_it_sleeps_is_noticed_and_waking_starts_it(make: Make, tmp_path: Path) -> None:
    sleeper, server = make("falls-once")
    fallen = asyncio.create_task(sleeper.ended())
    await sleeper.wake()
    await sleeper.sleep(2)
    (tmp_path / "fall").touch()
    async with asyncio.timeout(30):
        assert "CUDA out of memory; ended with status 7" in await fallen
    assert server.generation == 1, "nobody asked for it yet"
    assert list((await sleeper.wake()).seconds) == ["process"]
    await sleeper.stop()
    assert await gone([start["pid"] for start in noted(tmp_path, "starts")], within_s=0)


async def test_a_start_that_fails_says_why(make: Make) -> None:
    sleeper, _ = make("fails")
    with pytest.raises(EngineStart, match="unrecognized arguments: --bogus"):
        await sleeper.wake()
    await sleeper.stop()


async def test_on_a_processor_its_device_is_the_memory_of_all_its_processes(make: Make) -> None:
    sleeper, _ = make()
    assert await sleeper.footprint() == Footprint(device_bytes=0)
    await sleeper.wake()
    footprint = await sleeper.footprint()
    assert footprint.device_bytes > 1 << 20
    assert footprint.host_bytes == 0


async def test_on_gpus_its_device_is_what_nvidia_smi_says_of_its_processes(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sleeper, _ = make(cpu=False)
    await sleeper.wake()
    pid = noted(tmp_path, "starts")[0]["pid"]
    says = f"print('1, 500\\n{pid}, 1000')"
    monkeypatch.setattr(memory, "_COMMAND", (sys.executable, "-S", "-c", says))
    footprint = await sleeper.footprint()
    assert footprint.device_bytes == 1000 << 20
    assert footprint.host_bytes > 1 << 20
    monkeypatch.setattr(memory, "_COMMAND", (sys.executable, "-S", "-c", "print('1, 500')"))
    for _ in range(2):
        assert (await sleeper.footprint()).device_bytes == 0
    (warning,) = caplog.messages
    assert "does not say what its processes take; its model is taken to fill its device" in warning
