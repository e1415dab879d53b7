"""One model that may sleep: what is known of it. The loop in `lifecycle` alone changes it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nightfill.engines.lifecycle.state import ModelState
from nightfill.engines.lifecycle.view import View
from nightfill.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightfill.engines.lifecycle.sleeper import Footprint, Level, Sleeper
    from nightfill.engines.lifecycle.waiting import Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Managed:
    """A model that is handed over to the lifecycle."""

    name: str
    device: str
    """Of `lifecycle.devices`."""
    sleeper: Sleeper
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Woke:
    """How a model woke."""

    at_s: float
    """When it was awake, Unix seconds."""
    seconds: Mapping[str, float]
    """By phase, in order: those of its sleeper, then `warm`."""
    waited_s: float
    """What the request that had waited longest for it had waited; 0 where none had."""
    released: int
    """Requests that had waited."""
    fresh: bool
    """False where its own KV cache may have survived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One transition."""

    at_s: float
    """Unix seconds."""
    model: str
    before: ModelState
    after: ModelState
    reason: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What led to it took so long, by phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One model, for people."""

    name: str
    device: str
    state: ModelState
    since_s: float
    """When it came into its state, Unix seconds."""
    in_flight: int
    waiting: int
    awake_bytes: int | None
    """Of its device, as measured at its first load."""
    footprint: Footprint | None
    """As measured last: when it last woke, fell asleep or was stopped."""
    pinned: bool
    wakes: int
    failures: int
    last_wake: Woke | None
    error: str
    """Of the last failure; empty once it woke."""
    expected_until_s: float | None
    """Unix seconds until which somebody is expected to ask for it."""


@dataclass(slots=True, kw_only=True, eq=False)
class Model:
    """Times are seconds of the lifecycle's clock, but for `since_unix_s` and in `last_wake`."""

    managed: Managed
    line: Line
    state: ModelState = ModelState.STOPPED
    since_s: float = -math.inf
    since_unix_s: float = 0.0
    acting: asyncio.Task[None] | None = None
    """Calls its sleeper."""
    watch: asyncio.Task[str] | None = None
    """Ends with its process."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, at the next transition (`stir`)."""
    in_flight: int = 0
    behind: int = 0
    """Background work that waits behind everybody else."""
    pinned: bool = False
    size_bytes: int | None = None
    held_bytes: int = 0
    host_bytes: int = 0
    host_1_bytes: int = 0
    footprint: Footprint | None = None
    woke_s: float = -math.inf
    used_s: float = -math.inf
    told: list[Level] = field(default_factory=list)
    """By everybody who now sends it to sleep by hand."""
    sent: int = 0
    """How often it was sent to sleep by hand."""
    expected_until_s: float = -math.inf
    retry_at_s: float = -math.inf
    refuses: bool = False
    """Until `retry_at_s` requests are refused instead of waiting."""
    doublings: int = 0
    """Of the time before it is tried again, since it last woke."""
    tried: bool = False
    exits: int = 0
    """Of its process by itself, since it was last healthy."""
    wakes: int = 0
    failures: int = 0
    last_wake: Woke | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """As requests and settings have it."""
        return self.managed.name

    @property
    def sleeper(self) -> Sleeper:
        """What acts on it."""
        return self.managed.sleeper

    def stir(self) -> None:
        """Have whoever waits for its state look at it."""
        self.moved.set()
        self.moved = asyncio.Event()

    def let_in(self) -> None:
        """Release its line: everybody in it is in flight from now on."""
        self.in_flight += self.line.release()

    def refuse(self, why: str) -> None:
        """Answer everybody who waits for it."""
        self.line.fail(lambda: EngineUnavailable(why, engine=self.name))

    def view(self) -> View:
        """What the policy sees."""
        return View(
            name=self.name,
            device=self.managed.device,
            state=self.state,
            acting=self.acting is not None,
            levels=self.sleeper.levels,
            pinned=self.pinned,
            size_bytes=self.size_bytes,
            held_bytes=self.held_bytes,
            host_bytes=self.host_bytes,
            host_1_bytes=self.host_1_bytes,
            in_flight=self.in_flight,
            asked_s=self.line.oldest_s,
            since_s=self.since_s,
            woke_s=self.woke_s,
            used_s=self.used_s,
            told=self.told[-1] if self.told else None,
            expected_until_s=math.inf if self.behind else self.expected_until_s,
            retry_at_s=self.retry_at_s,
            tried=self.tried,
        )

    def status(self, *, now_s: float, now_unix_s: float) -> Status:
        """What people see."""
        expected = self.expected_until_s > now_s
        return Status(
            name=self.name,
            device=self.managed.device,
            state=self.state,
            since_s=self.since_unix_s,
            in_flight=self.in_flight,
            waiting=len(self.line),
            awake_bytes=self.size_bytes,
            footprint=self.footprint,
            pinned=self.pinned,
            wakes=self.wakes,
            failures=self.failures,
            last_wake=self.last_wake,
            error=self.error,
            expected_until_s=now_unix_s + self.expected_until_s - now_s if expected else None,
        )
