"""What the gateways serve at this moment, as the gate sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Live load summed over all gateways that are alive."""

    in_flight: int
    """Requests that were taken in and not yet answered to the end."""
    idle_since_s: float
    """When `in_flight` last became 0, in `time.monotonic` seconds of this host; the past if there never was any."""
    ttft_s: float
    """Smoothed live time to first token in seconds; 0 when unknown."""


class LoadBoard(Protocol):
    """Gateways write, workers read. Reading costs microseconds and never blocks; a dead gateway's count is ignored."""

    def enter(self) -> None:
        """A live request was taken in."""

    def leave(self) -> None:
        """A live request ended. Calls to `enter` and `leave` balance."""

    def note_ttft(self, seconds: float) -> None:
        """A live request's time to first token was measured."""

    def read(self) -> Load:
        """The load now."""


class _NoLoad:
    """A `LoadBoard` that nobody writes to."""

    def enter(self) -> None:
        """Nothing."""

    def leave(self) -> None:
        """Nothing."""

    def note_ttft(self, seconds: float) -> None:
        """Nothing."""

    def read(self) -> Load:
        """Never any request; whoever came would not mind to wait."""
        return Load(in_flight=0, idle_since_s=float("-inf"), ttft_s=float("inf"))


NO_LOAD: Final = _NoLoad()
"""The load of engines that serve nobody."""
