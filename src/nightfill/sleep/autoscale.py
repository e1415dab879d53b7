"""How many workers there should be. Pure; for autoscalers, which do the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.sleep.trigger import Go, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nightfill.sleep.trigger import Wait
    from nightfill.state.engines import EngineNote
    from nightfill.state.jobs import QueueDepth

PACE: Final = "fill_tokens_per_s"
"""In the note of an engine: what a worker last filled with it per second, waiting for live requests included."""
_LEAST_LEFT_S: Final = 60.0
"""Who starts later than so before the window's end comes too late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What an autoscaler needs to know, of all tenants together."""

    wished_workers: int
    allowed: bool
    """Whether it is time for background work."""
    reason: str
    """One of `Reason`, or `wait`."""
    why: str
    queue_depth: int
    """Unfinished jobs: those due, those that wait for a retry, and those leased."""
    due: int
    later: int
    leased: int
    tokens: int
    """Still to be computed, as far as known."""
    tokens_per_s: float
    """Of one worker, as measured; 0 while unknown."""


def scale(
    depth: QueueDepth, decision: Go | Wait, *, pace: float, asked: int, now_s: float, horizon_s: float, max_workers: int
) -> Scale:
    """`pace`: tokens per second of one worker, 0 while unknown. `asked`: unfinished jobs that somebody asked for.

    As many workers as finish by the end of the window, or within `horizon_s` where no end is known; no more than there
    are jobs, nor than `max_workers`; one where the pace is unknown; none where nothing is to do, or it is not time.
    """
    jobs = depth.due + depth.leased
    wished = 0
    if isinstance(decision, Go) and jobs:
        left_s = horizon_s if decision.until_s is None else max(decision.until_s - now_s, _LEAST_LEFT_S)
        wished = max(1, math.ceil(depth.tokens / (pace * left_s))) if pace > 0 else 1
    # Who asked is waiting: his jobs have a worker each, at any hour.
    wished = min(max(wished, asked), jobs, max_workers)
    reason = decision.reason if isinstance(decision, Go) else Reason.ASKED if wished else "wait"
    return Scale(
        wished_workers=wished,
        allowed=isinstance(decision, Go) or wished > 0,
        reason=str(reason),
        why=decision.why,
        queue_depth=jobs + depth.later,
        due=depth.due,
        later=depth.later,
        leased=depth.leased,
        tokens=depth.tokens,
        tokens_per_s=pace,
    )


def pace_of(notes: Iterable[EngineNote]) -> float:
    """Mean over the engines whose pace is known; 0 where none is."""
    known = [float(pace) for note in notes if isinstance(pace := note.body.get(PACE), int) and pace > 0]
    return sum(known) / len(known) if known else 0.0
