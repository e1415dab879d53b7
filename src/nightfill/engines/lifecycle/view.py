"""What the policy sees of a model, and what it may say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.engines.lifecycle.state import ModelState

if TYPE_CHECKING:
    from nightfill.engines.lifecycle.sleeper import Level

S = ModelState
UP: Final = frozenset({S.STARTING, S.WARMING, S.AWAKE, S.DRAINING})
"""States in which a model takes its full size of the device, or is about to, or still does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One model as the policy sees it. Times are seconds of one monotonic clock; -inf for never."""

    name: str
    device: str
    state: ModelState = S.STOPPED
    acting: bool = False
    """A call to its sleeper is under way."""
    levels: frozenset[Level] = frozenset({1, 2})
    pinned: bool = False
    size_bytes: int | None = None
    """Of the device when it is awake; None while it was never measured."""
    held_bytes: int = 0
    """Of the device that it takes now, or may be about to take."""
    host_bytes: int = 0
    """Of the host that it takes now because it is asleep at level 1, or may be about to."""
    host_1_bytes: int = 0
    """Of the host when it was asleep at level 1 the last time; 0 while it never was."""
    in_flight: int = 0
    asked_s: float | None = None
    """When the oldest of its waiting requests came; None where none waits."""
    since_s: float = -math.inf
    """When it came into its state."""
    woke_s: float = -math.inf
    used_s: float = -math.inf
    """When it was last asked for, or done with a request."""
    told: Level | None = None
    """Sent to sleep by hand, to this level."""
    expected_until_s: float = -math.inf
    retry_at_s: float = -math.inf
    """Not to be started before."""
    tried: bool = False
    """It was started at least once, well or not."""

    @property
    def idle(self) -> bool:
        """No request is in flight or waits."""
        return self.in_flight == 0 and self.asked_s is None

    @property
    def unknown(self) -> bool:
        """It is to be loaded, and nobody knows yet what it will take."""
        return self.size_bytes is None and self.state not in UP and (not self.tried or self.asked_s is not None)


@dataclass(frozen=True, slots=True)
class Wake:
    """Start it, or bring it back."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Let no more requests in; it sleeps when those in flight have ended."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Drain no longer."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sleep:
    """It is drained, or asleep at level 1: put it to sleep at `level`."""

    name: str
    level: Level
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """It cannot wake however long its requests wait: answer them with an error."""

    name: str
    reason: str


Action = Wake | Drain | Resume | Sleep | Refuse
