from __future__ import annotations

from typing import Any

import pytest

from nightfill.cli.bounds import check_bounds
from nightfill.config import ByteSize, DeviceSettings, EngineSettings, LaunchSettings, LifecycleSettings, Settings
from nightfill.errors import BadSetting

GPU = DeviceSettings(name="gpu", max_bytes=ByteSize(1 << 30))


def settings(*engines: EngineSettings, devices: tuple[DeviceSettings, ...] = (GPU,)) -> Settings:
    return Settings(engines=engines, lifecycle=LifecycleSettings(devices=devices))


def llama(name: str = "a", **more: Any) -> EngineSettings:
    return EngineSettings(name=name, model="m.gguf", **more)


def vllm(**more: Any) -> EngineSettings:
    return EngineSettings(name="v", kind="vllm", **more)


@pytest.mark.parametrize(
    "engine",
    [
        llama(device="gpu", pinned=True, wake_at=("0 8 * * MON-FRI", "30 13 * * *")),
        vllm(model="org/name"),
        vllm(model="org/name", device="gpu", launch=LaunchSettings(cpu=True)),
        vllm(url="http://h:1"),
        vllm(url="http://h:1", model="org/name"),
    ],
)
def test_what_goes_together_is_taken(engine: EngineSettings) -> None:
    check_bounds(settings(engine, llama("b", device="gpu")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (settings(llama(device="gpu1")), r"engines.0.device = 'gpu1': must be one of gpu$"),
        (settings(llama(device="gpu"), devices=()), r"engines.0.device = 'gpu': lifecycle.devices has none"),
        (settings(llama(), devices=(GPU, GPU)), r"lifecycle.devices.1.name = 'gpu': must be there, and unlike"),
        (settings(llama(pinned=True)), r"engines.0.pinned = True: needs a device"),
        (settings(llama(wake_at=("0 8 * * *",))), r"engines.0.wake_at = .*: needs a device"),
        (
            settings(llama(device="gpu", wake_at=("0 8 * * *", "0 25 * * *"))),
            r"engines.0.wake_at.1 = '0 25 \* \* \*': .*must be minute hour day month weekday",
        ),
        (settings(llama(device="gpu", wake_at=("0 8 * *",))), r"engines.0.wake_at.0 = .*must be five fields"),
        (settings(llama(device="gpu", wake_at=("0 8 * * * for 2h",))), r"engines.0.wake_at.0 = .*must be five fields"),
        (settings(vllm()), r"engines.0: kind: vllm needs the url of a server, or the model"),
        (settings(vllm(url="http://h:1", device="gpu")), r"engines.0.device = 'gpu': is not for a server that runs"),
        (settings(vllm(url="http://h:1", launch=LaunchSettings(cpu=True))), r"engines.0.launch: is for kind: vllm wi"),
        (settings(llama(launch=LaunchSettings(cpu=True))), r"engines.0.launch: is for kind: vllm without a url only"),
        (settings(vllm(model="m", roles=("decode",))), r"engines.0.roles = .*: prefill and decode are for servers"),
        (settings(vllm(model="m", device="gpu", roles=("fill",))), r"engines.0.device = 'gpu': is for engines that an"),
    ],
)
def test_what_does_not_is_refused_with_key_value_and_what_is_allowed(given: Settings, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        check_bounds(given)
