"""A sleeper in virtual time that keeps the contract of `engines.lifecycle.sleeper`, failures and hangs included."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nightfill.engines.lifecycle.sleeper import Footprint, Woken
from nightfill.errors import EngineStart, EngineUnavailable, KvError, WokeWrong

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightfill.engines.lifecycle.sleeper import Level

Fault = Literal["", "fail", "hang", "wrong", "bug"]
Where = Literal["stopped", "asleep_1", "asleep_2", "up"]


@dataclass
class FakeSleeper:
    """`log` has what was called, in order. It has its full size from the beginning of `wake` to the end of `sleep`.

    Whoever breaks the contract finds it in `breaches`: an error raised here would count as the engine's own.
    """

    name: str = "m"
    size_bytes: int = 100
    level_1_bytes: int = 0
    """Of the device, asleep at level 1."""
    host_1_bytes: int = 0
    levels: frozenset[Level] = frozenset({1, 2})
    wake_s: float = 1.0
    warm_s: float = 0.1
    keep_s: float = 0.1
    sleep_s: float = 0.5
    stop_s: float = 0.0
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """What becomes of the next calls, by method; fine where there is none."""
    in_flight: int = 0
    """Requests that it answers now; whoever asks it counts them."""
    log: list[str] = field(default_factory=list)
    where: Where = "stopped"
    is_warm: bool = False
    deaths: int = 0
    stop_hangs: bool = False
    breaches: list[str] = field(default_factory=list)
    on_step: Callable[[], None] = field(default=lambda: None)
    """Called at the beginning and the end of each call."""
    _busy: str = ""
    _rising: bool = False
    _died: asyncio.Event = field(default_factory=asyncio.Event)
    _words: str = ""

    @property
    def device_bytes(self) -> int:
        """What it takes of the device now."""
        if self.where == "up" or self._rising:
            return self.size_bytes
        return self.level_1_bytes if self.where == "asleep_1" else 0

    @property
    def host_bytes(self) -> int:
        return self.host_1_bytes if self.where == "asleep_1" else 0

    @property
    def running(self) -> bool:
        return self.where in ("up", "asleep_1")

    def die(self, words: str = "out of memory") -> None:
        """Its process ends by itself."""
        if self.running:
            self.where, self.is_warm, self._words, self.in_flight = "stopped", False, words, 0
            self.deaths += 1
            self._died.set()

    async def _step(self, method: str, seconds: float) -> Fault:
        self._expect(not self._busy, f"{method} while {self._busy} is under way")
        self._expect(not self.in_flight, f"{method} with {self.in_flight} requests in flight")
        self.on_step()
        self.log.append(method)
        self._busy = method
        try:
            faults = self.faults.get(method)
            fault = faults.pop(0) if faults else ""
            if fault == "hang":
                await asyncio.Event().wait()
            await asyncio.sleep(seconds)
            if fault == "bug":
                raise ZeroDivisionError
            if fault == "fail":
                raise EngineStart(f"no {method} today", engine=self.name)
            return fault
        finally:
            self._busy = ""
            self.on_step()

    async def wake(self) -> Woken:
        self._expect(self.where != "up", "woken twice")
        came_from, self._rising = self.where, True
        try:
            await self._step("wake", self.wake_s)
        except BaseException:
            # Half up: only `stop` gives its memory back.
            self.where = "up"
            raise
        finally:
            self._rising = False
        self.where, self.is_warm = "up", False
        self._died.clear()
        return Woken(seconds={"load": self.wake_s}, fresh=came_from != "asleep_1")

    async def warm(self) -> None:
        if await self._step("warm", self.warm_s) == "wrong":
            raise WokeWrong("says other things than before", engine=self.name)
        self._check()
        self.is_warm = True

    async def keep(self) -> None:
        if await self._step("keep", self.keep_s) == "wrong":
            raise KvError("disk full")
        self._check()

    async def sleep(self, level: Level) -> None:
        awake = self.where == "up" or self._died.is_set()
        self._expect(awake or (self.where, level) == ("asleep_1", 2), f"{self.where} to level {level}")
        self._expect(level in self.levels, f"it has no level {level}")
        await self._step(f"sleep {level}", self.sleep_s)
        self._check()
        self.where, self.is_warm = ("asleep_1" if level == 1 else "asleep_2"), False

    async def stop(self) -> None:
        if self.stop_hangs:
            await asyncio.Event().wait()
        self.log.append("stop")
        await asyncio.sleep(self.stop_s)
        self.where, self.is_warm = "stopped", False

    async def footprint(self) -> Footprint:
        return Footprint(device_bytes=self.device_bytes, host_bytes=self.host_bytes)

    async def ended(self) -> str:
        await self._died.wait()
        return self._words

    def _expect(self, kept: bool, what: str) -> None:
        if not kept:
            self.breaches.append(what)

    def _check(self) -> None:
        if not self.running:
            raise EngineUnavailable("connection refused", engine=self.name)
