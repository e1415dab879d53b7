"""The load board of a fleet: this host's, and what other hosts say of theirs.

Each host's gateway publishes its load when it changes, at most every `PUBLISH_S`, and every `HEARTBEAT_S` anyhow. Who
reads knows the others' of `READ_S` ago, plus the way. What is not known counts as one live request: a host that fell
silent without having said goodbye, until it is silent for `GONE_S`, and all of them while the state is away. So work
on engines that serve waits for a moment too long rather than for one too short, and a host that died holds it up for
half a minute at most. Engines that serve nobody have a board of their own (`NO_LOAD`), and go on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self, runtime_checkable

from nightfill.errors import StateUnavailable
from nightfill.state.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from nightfill.state.load import LoadBoard

_LOG: Final = logging.getLogger(__name__)

PUBLISH_S: Final = 0.02
HEARTBEAT_S: Final = 1.0
READ_S: Final = 0.05
SILENT_S: Final = 3.0
"""Then a host's load, or all of them, count as unknown."""
GONE_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoad:
    """What a host said of its gateways, some time ago."""

    host: str
    in_flight: int
    idle_s: float
    """How long none was in flight, when it said so; infinite if there never was one."""
    ttft_s: float
    age_s: float
    """How long ago that was, by the store's clock."""


class SharedLoads(Protocol):
    """Where hosts tell each other. Raises StateUnavailable."""

    async def publish(self, host: str, load: Load, *, idle_s: float) -> None:
        """Say what this host's load is now."""

    async def withdraw(self, host: str) -> None:
        """Say that this host serves no more."""

    async def read(self, *, gone_s: float) -> list[HostLoad]:
        """What each host said last, but for those silent for so long."""


@runtime_checkable
class FleetState(Protocol):
    """A state in which hosts tell each other their load."""

    loads: SharedLoads


def others_load(hosts: Sequence[HostLoad], *, me: str, now_s: float) -> Load:
    """The load of all other hosts; `now_s` is of this host's steady clock."""
    others = [host for host in hosts if host.host != me]
    return Load(
        in_flight=sum(max(1, host.in_flight) if host.age_s > SILENT_S else host.in_flight for host in others),
        idle_since_s=max((now_s - host.idle_s - host.age_s for host in others), default=-math.inf),
        ttft_s=min((host.ttft_s for host in others if host.ttft_s > 0), default=0.0),
    )


def joined(local: Load, others: Load) -> Load:
    """The load of both."""
    return Load(
        in_flight=local.in_flight + others.in_flight,
        idle_since_s=max(local.idle_since_s, others.idle_since_s),
        ttft_s=min((ttft_s for ttft_s in (local.ttft_s, others.ttft_s) if ttft_s > 0), default=0.0),
    )


class FleetBoard:
    """See `LoadBoard`. `local` is this host's; `me` names it, the same for all its processes.

    A gateway passes `publishes`, a worker does not: then it reads. Its tasks run inside `async with`. One event loop.
    """

    def __init__(
        self,
        local: LoadBoard,
        loads: SharedLoads,
        *,
        me: str,
        publishes: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._local = local
        self._loads = loads
        self._me = me
        self._publishes = publishes
        self._clock = clock
        self._others = Load(in_flight=0, idle_since_s=-math.inf, ttft_s=0.0)
        self._read_at_s = -math.inf
        self._changed = asyncio.Event()
        self._said = ""
        self._tasks: list[asyncio.Task[None]] = []

    def enter(self) -> None:
        """See `LoadBoard`."""
        self._local.enter()
        self._changed.set()

    def leave(self) -> None:
        """See `LoadBoard`."""
        self._local.leave()
        self._changed.set()

    def note_ttft(self, seconds: float) -> None:
        """See `LoadBoard`."""
        self._local.note_ttft(seconds)

    def read(self) -> Load:
        """See `LoadBoard`."""
        load = joined(self._local.read(), self._others)
        if self._clock() - self._read_at_s <= SILENT_S:
            return load
        unknown = load.in_flight + (0 if self._others.in_flight else 1)
        return Load(in_flight=unknown, idle_since_s=load.idle_since_s, ttft_s=load.ttft_s)

    async def __aenter__(self) -> Self:
        self._start(self._read_on(), "read the fleet's load")
        if self._publishes:
            self._start(self._publish_on(), "publish this host's load")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._publishes:
            try:
                await self._loads.withdraw(self._me)
            except StateUnavailable as exc:
                _LOG.info("the fleet finds out by itself that this host serves no more: %s", exc)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work, name=name))

    async def _publish_on(self) -> None:
        while True:
            self._changed.clear()
            load = self._local.read()
            await self._tried(self._loads.publish(self._me, load, idle_s=self._clock() - load.idle_since_s))
            await asyncio.sleep(PUBLISH_S)
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._changed.wait()
            except TimeoutError:
                pass  # the heartbeat

    async def _read_on(self) -> None:
        while True:
            await self._tried(self._look())
            await asyncio.sleep(READ_S)

    async def _look(self) -> None:
        asked_at_s = self._clock()
        hosts = await self._loads.read(gone_s=GONE_S)
        self._others = others_load(hosts, me=self._me, now_s=asked_at_s)
        self._read_at_s = asked_at_s

    async def _tried(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
            self._said = ""
        except StateUnavailable as exc:
            if not self._said:
                _LOG.warning("the load of other hosts is not known: %s", exc)
            self._said = str(exc)
