"""Whether background work may run now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nightfill.config import SleepSettings
    from nightfill.state.load import Load

CHECK_RUNNING_S: Final = 0.002
"""How often running work looks at the gate: what a live request waits for at most before it has the machine."""
CHECK_CLOSED_S: Final = 0.02
"""How often work that waits, or stands frozen, looks: each look takes a core from the live request for a moment."""


@dataclass(frozen=True, slots=True)
class Open:
    """Background work may run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """Background work must not run; ask again after `check_again_in_s`."""

    reason: str
    check_again_in_s: float


def verdict(load: Load, settings: SleepSettings, now_s: float) -> Open | Closed:
    """`now_s` is of the clock of `load.idle_since_s`; one that runs backwards closes for `quiet_s` at most."""
    if load.in_flight > settings.max_live:
        requests = "request" if load.in_flight == 1 else "requests"
        return Closed(reason=f"{load.in_flight} live {requests}", check_again_in_s=CHECK_CLOSED_S)
    if load.in_flight == 0:
        left_s = min(load.idle_since_s + settings.quiet_s - now_s, float(settings.quiet_s))
        if left_s > 0:
            return Closed(reason="quiet period", check_again_in_s=left_s)
    return Open()
