"""Somebody who wakes models and puts them to sleep, as the gateway knows him."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nightfill.engines.lifecycle.model import Status, Woke
from nightfill.engines.lifecycle.sleeper import Footprint
from nightfill.engines.lifecycle.state import ModelState
from nightfill.errors import EngineTimeout

AWAKE = Status(
    name="fake",
    device="gpu",
    state=ModelState.AWAKE,
    since_s=1.0,
    in_flight=1,
    waiting=2,
    awake_bytes=3 << 20,
    footprint=Footprint(device_bytes=3 << 20),
    pinned=False,
    wakes=1,
    failures=0,
    last_wake=Woke(at_s=1.0, seconds={"load": 0.25, "warm": 0.05}, waited_s=0.5, released=2, fresh=True),
    error="",
    expected_until_s=None,
)


@dataclass
class FakeKeeper:
    """One model, which does as it is told."""

    status: Status = AWAKE
    told: list[tuple[object, ...]] = field(default_factory=list)
    stuck: bool = False

    async def wake(self, name: str) -> None:
        self.told.append(("wake", name))
        self.status = replace(self.status, state=ModelState.AWAKE)

    async def sleep(self, name: str, level: int | None = None) -> None:
        self.told.append(("sleep", name, level))
        if self.stuck:
            raise EngineTimeout("is still in use", engine=name)
        self.status = replace(self.status, state=ModelState.ASLEEP_2 if level == 2 else ModelState.ASLEEP_1)

    def pin(self, name: str, pinned: bool) -> None:
        self.told.append(("pin", name, pinned))
        self.status = replace(self.status, pinned=pinned)

    def statuses(self) -> list[Status]:
        return [self.status]
