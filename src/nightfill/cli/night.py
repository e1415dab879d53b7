"""What a night is made of, from the settings: windows, what wakes workers, how many are wished for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nightfill.cli.units import parse_duration
from nightfill.sleep.autoscale import pace_of, scale
from nightfill.sleep.trigger import KINDS, Trigger
from nightfill.sleep.windows import windows_of
from nightfill.state.jobs import ASKED, JobState

if TYPE_CHECKING:
    from nightfill.config import SleepSettings
    from nightfill.sleep.autoscale import Scale
    from nightfill.sleep.planner import State
    from nightfill.sleep.windows import Windows
    from nightfill.state.load import LoadBoard


def night_windows(settings: SleepSettings) -> Windows:
    """The windows. Raises BadSetting."""
    return windows_of(settings, duration=parse_duration)


class Scaler:
    """Wishes for workers, as the triggers say and the queue needs. For one event loop."""

    def __init__(self, state: State, board: LoadBoard, settings: SleepSettings) -> None:
        self._state = state
        self._settings = settings
        self._trigger = Trigger(state.jobs, board, settings, night_windows(settings))

    async def now(self) -> Scale:
        """As of now. Raises StateUnavailable."""
        jobs, most = self._state.jobs, self._settings.max_workers
        # By priority: what somebody asked for is at the front.
        first = await jobs.jobs(states=(JobState.QUEUED, JobState.LEASED), limit=most)
        return scale(
            await jobs.depth(kinds=KINDS),
            await self._trigger.now(),
            pace=pace_of(await self._state.engines.notes()),
            asked=sum(job.priority >= ASKED for job in first),
            now_s=time.time(),
            horizon_s=float(self._settings.window_length_s),
            max_workers=most,
        )
