"""What acts: puts one model to sleep and wakes it, whatever engine runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

Level = Literal[1, 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory that a model takes now."""

    device_bytes: int
    """Of the device that its budget is for: VRAM, or RAM where the processor computes."""
    host_bytes: int = 0
    """Of the host, beside that: weights of a vLLM server at level 1. 0 where the device is the host's RAM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Woken:
    """How a model came to be up."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """By phase, in order: `process` (its process started), `load` (weights and KV memory), `reset` (after level 2)."""
    fresh: bool = True
    """False where its own KV cache may have survived."""


class Sleeper(Protocol):
    """One model's process, for the lifecycle alone: it makes one call at a time, and none while requests are in flight
    but `footprint` and `ended`. Every method is bounded in time by the caller, and may be cancelled; after an error or
    a cancellation `stop` brings it back to where `wake` works. Raises EngineError.
    """

    @property
    def levels(self) -> frozenset[Level]:
        """The levels of sleep that it has."""

    async def wake(self) -> Woken:
        """Bring it up from wherever it is: not started, asleep at either level, or ended by itself. Not warm yet."""

    async def warm(self) -> None:
        """Compute one token, and compare a greedy continuation with the one that was stored at the first wake.

        Raises WokeWrong when they differ: the process must be stopped and started anew.
        """

    async def keep(self) -> None:
        """Store what is worth keeping of its KV: what a context's fill promises, and is not in the store yet."""

    async def sleep(self, level: Level) -> None:
        """From awake to `level`, or from level 1 to level 2."""

    async def stop(self) -> None:
        """End its process, by force if need be. Never raises. Idempotent."""

    async def footprint(self) -> Footprint:
        """As measured now. Zero when nothing runs."""

    async def ended(self) -> str:
        """Wait until its process ends by itself, not through `sleep` or `stop`; its last words, no request's text.
        Until then it neither returns nor raises.
        """
