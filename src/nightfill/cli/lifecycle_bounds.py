"""Which settings of models that sleep, and of servers that nightfill starts, go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.config import LaunchSettings
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from nightfill.config import EngineSettings, Settings

_NO_LAUNCH: Final = LaunchSettings()


def check_lifecycle(settings: Settings) -> None:
    """Raise BadSetting unless devices have names of their own, and engines name one of them."""
    names = [device.name for device in settings.lifecycle.devices]
    for index, name in enumerate(names):
        if not name or name in names[:index]:
            raise _bad(f"lifecycle.devices.{index}.name", name, "must be there, and unlike those of the other devices")
    for index, engine in enumerate(settings.engines):
        if engine.device and engine.device not in names:
            allowed = f"must be one of {', '.join(names)}" if names else "lifecycle.devices has none"
            raise _bad(f"engines.{index}.device", engine.device, allowed)
        for key in ("pinned", "wake_at"):
            if getattr(engine, key) and not engine.device:
                value = getattr(engine, key)
                raise _bad(f"engines.{index}.{key}", value, "needs a device: without one it is always awake")
        if engine.wake_at:
            from nightfill.sleep.windows import wakes_of

            key = f"engines.{index}.wake_at"
            wakes_of(engine.wake_at, key=key, length_s=1.0, zone=settings.sleep.time_zone)


def check_launch(engine: EngineSettings, index: int) -> None:
    """Raise BadSetting for what only servers of our own have, or lack."""
    key = f"engines.{index}"
    ours = engine.kind == "vllm" and not engine.url
    if ours and not engine.model:
        raise BadSetting(
            f"setting {key}: kind: vllm needs the url of a server, or the model that nightfill is to start one for",
            param=f"{key}.url",
        )
    if engine.launch != _NO_LAUNCH and not ours:
        raise BadSetting(f"setting {key}.launch: is for kind: vllm without a url only", param=f"{key}.launch")
    if engine.device and engine.kind == "vllm" and not ours:
        raise _bad(f"{key}.device", engine.device, "is not for a server that runs elsewhere (url)")
    if ours and set(engine.roles) & {"prefill", "decode"}:
        raise _bad(f"{key}.roles", engine.roles, "prefill and decode are for servers with a url")
    if ours and engine.device and set(engine.roles) == {"fill"}:
        raise _bad(f"{key}.device", engine.device, "is for engines that answer requests")


def _bad(key: str, value: object, allowed: str) -> BadSetting:
    return BadSetting(f"setting {key} = {value!r}: {allowed}", param=key)
