"""Whether it is time for background work: a window, a long queue, or idleness. Live requests are the gate's affair."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from nightfill.state.jobs import JobKind, QueueDepth

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightfill.config import SleepSettings
    from nightfill.sleep.windows import Windows
    from nightfill.state.jobs import JobQueue
    from nightfill.state.load import Load, LoadBoard

KINDS: Final = tuple(JobKind)
"""Of the jobs that workers do."""
REST_SHARE: Final = 0.2
"""A queue that woke workers keeps them awake until it is so much of the depth that woke them; or they would lie down
after each job, and get up for each new one.
"""
CHECK_S: Final = 1.0
"""How old a decision may be: work goes on for so long after the end of its window."""
_CHECK_WAITING_S: Final = 5.0
_NO_DEPTH: Final = QueueDepth(due=0, later=0, leased=0, tokens=0)


class Reason(enum.StrEnum):
    """Why background work may run."""

    ALWAYS = "always"
    """No windows are set."""
    WINDOW = "window"
    DEPTH = "depth"
    IDLE = "idle"
    ASKED = "asked"
    """Somebody asked for this very work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """It may run."""

    reason: Reason
    why: str
    until_s: float | None = None
    """Unix seconds; None while no end is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """It must not begin, and what runs goes back to the queue."""

    why: str
    check_again_in_s: float


def decide(
    now_s: float,
    windows: Windows,
    *,
    due: int,
    idle_for_s: float,
    awake: bool,
    settings: SleepSettings,
    asked: bool = False,
) -> Go | Wait:
    """`now_s` is Unix seconds. `due`: jobs that could be leased now. `awake`: the last decision was Go for DEPTH.
    `asked`: a person asked for the work in question.
    """
    if not windows:
        return Go(reason=Reason.ALWAYS, why="no windows are set")
    window = windows.open_at(now_s)
    if window is not None:
        why = f"window `{window.rule.cron}` is open until {_shown(window.closes_at_s, windows)}"
        return Go(reason=Reason.WINDOW, why=why, until_s=window.closes_at_s)
    wake = settings.wake_at_queue_depth
    if wake and due >= wake:
        return Go(reason=Reason.DEPTH, why=f"{due} jobs are due, {wake} wake workers")
    if wake and awake and due > int(wake * REST_SHARE):
        return Go(reason=Reason.DEPTH, why=f"{due} jobs are still due, {int(wake * REST_SHARE)} are left to the window")
    patience_s = float(settings.wake_when_idle_s)
    if patience_s and idle_for_s >= patience_s:
        return Go(reason=Reason.IDLE, why=f"no request for {patience_s:g} s")
    if asked:
        return Go(reason=Reason.ASKED, why="somebody asked for it")
    coming = windows.next_after(now_s)
    opens_s = coming.opens_at_s if coming is not None else float("inf")
    why = f"the next window opens at {_shown(opens_s, windows)}" if coming is not None else "no window opens any more"
    if wake:
        why += f"; {due} of {wake} jobs are due"
    again_s = min(_CHECK_WAITING_S, opens_s - now_s, patience_s - idle_for_s if patience_s else float("inf"))
    return Wait(why=why, check_again_in_s=max(again_s, 0.01))


def idle_for_s(load: Load, now_s: float) -> float:
    """Since when nobody asked; `now_s` is of the clock of `load.idle_since_s`."""
    return max(0.0, now_s - load.idle_since_s) if load.in_flight == 0 else 0.0


class Trigger:
    """Looks at queue and board, and decides. Remembers what woke it. For one event loop.

    `on_change` hears of each decision for another reason than the one before. `clock` gives Unix seconds, `steady` the
    monotonic ones of the board.
    """

    def __init__(
        self,
        queue: JobQueue,
        board: LoadBoard,
        settings: SleepSettings,
        windows: Windows,
        *,
        on_change: Callable[[Go | Wait], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._board = board
        self._settings = settings
        self._windows = windows
        self._on_change = on_change
        self._clock = clock
        self._steady = steady
        self._decision: Go | Wait | None = None
        self._again_at_s = float("-inf")

    async def now(self) -> Go | Wait:
        """The decision for work that nobody asked for, at most `CHECK_S` old when it is Go. Raises StateUnavailable."""
        if self._decision is None or self._steady() >= self._again_at_s:
            before, self._decision = self._decision, await self._decide()
            wait_s = self._decision.check_again_in_s if isinstance(self._decision, Wait) else CHECK_S
            self._again_at_s = self._steady() + wait_s
            if before is None or _kind(before) != _kind(self._decision):
                self._on_change(self._decision)
        return self._decision

    async def _decide(self) -> Go | Wait:
        settings, now_s = self._settings, self._clock()
        # The queue is asked only where its length decides.
        matters = settings.wake_at_queue_depth and self._windows and self._windows.open_at(now_s) is None
        depth = await self._queue.depth(kinds=KINDS) if matters else _NO_DEPTH
        return decide(
            now_s,
            self._windows,
            due=depth.due,
            idle_for_s=idle_for_s(self._board.read(), self._steady()),
            awake=_kind(self._decision) is Reason.DEPTH,
            settings=settings,
        )


def _kind(decision: Go | Wait | None) -> Reason | None:
    return decision.reason if isinstance(decision, Go) else None


def _shown(at_s: float, windows: Windows) -> str:
    return f"{datetime.fromtimestamp(at_s, windows.zone):%Y-%m-%d %H:%M %Z}"
