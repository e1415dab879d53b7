"""How a worker leaves: on a spot notice, and within its grace whatever happens."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Final

from nightfill.engines.upstream import Upstream
from nightfill.sleep.spot import ASK_WITHIN_S, CLOUDS, SpotWatch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from nightfill.config import SleepSettings

_LOG: Final = logging.getLogger(__name__)
_LAST_S: Final = 0.25
"""Of the grace, for the process itself to end."""


async def stop_on_notice(settings: SleepSettings, stop: asyncio.Event) -> None:
    """Set `stop` once the cloud of the settings says that this machine is about to be taken away."""
    cloud = settings.spot
    upstream = Upstream(settings.spot_notice_url or CLOUDS[cloud].url, engine=f"metadata ({cloud})")

    async def ask(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        answer = await upstream.request(method, path, headers=headers, timeout_s=ASK_WITHIN_S)
        return answer.status, answer.body

    try:
        said = await SpotWatch(cloud, ask).noticed()
        _LOG.warning("spot notice: %s: what is computed is kept, and the job goes back", said)
        stop.set()
    finally:
        await upstream.aclose()


async def end_within(grace_s: float, stop: asyncio.Event) -> None:
    """From `stop` on, end the process within `grace_s`, even where a thread, an engine or the state hangs.

    What is stored stays; a lease that could not be handed back by then is over when its time is.
    """
    await stop.wait()
    timer = threading.Timer(max(grace_s - _LAST_S, 0.0), _cut_off, (grace_s,))
    timer.daemon = True
    timer.start()


def _cut_off(grace_s: float) -> None:
    _LOG.warning("not at an end %g s after it was to leave: cut off", grace_s)
    # From a thread, so no exception would end the process, and what hangs may be Python's own waiting for its threads.
    os._exit(0)
