"""When a context is to be looked at again. Pure."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from nightfill.state.agenda import Looked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts.context import Context
    from nightfill.sleep.plan import PlanLine
    from nightfill.state.agenda import Due

QUIET_SHARE: Final = 0.25
"""A context that nobody has touched for so long is looked at again after this share of it: what it is worth changes
ever more slowly."""
SOONEST_S: Final = 300.0
LATEST_S: Final = 6 * 3600.0
USED_LATEST_S: Final = 3600.0
"""Of one that was used: the next hour may be one in which it usually is."""
SPREAD: Final = 0.5
"""Around the time that comes out, so that those put together do not come together for ever."""


def looked(found: Sequence[Due], lines: Sequence[PlanLine], *, now_s: float) -> list[Looked]:
    """What came of a look at `found`, of which `lines` are the verdicts."""
    of: dict[tuple[str, str], list[PlanLine]] = {}
    for line in lines:
        of.setdefault((line.tenant, line.context), []).append(line)
    return [_looked(due, of.get((due.context.tenant, due.context.name), ()), now_s) for due in found]


def _looked(due: Due, lines: Sequence[PlanLine], now_s: float) -> Looked:
    waiting = [line for line in lines if line.waits is not None]
    first = max(waiting, key=lambda line: line.priority, default=None)
    if first is None or first.waits is None:
        return Looked(due=due, again_in_s=again_in_s(due, now_s))
    in_s = first.waits.until_s - now_s + first.waits.valued_s / (1 + first.priority)
    return Looked(due=due, again_in_s=in_s, priority=first.priority, waits_for=first.waits.scope)


def again_in_s(due: Due, now_s: float) -> float:
    """Seconds until the next look at a context that does not change meanwhile."""
    touched_s = max(due.context.updated_at_s, due.usage.last_access_s or 0.0)
    latest_s = USED_LATEST_S if due.usage.hours else LATEST_S
    quiet_s = min(max(SOONEST_S, QUIET_SHARE * (now_s - touched_s)), latest_s)
    return quiet_s * (1 - SPREAD / 2 + SPREAD * _share(due.context))


def _share(context: Context) -> float:
    """Of 1, and the same each time."""
    return zlib.crc32(f"{context.tenant}/{context.name}".encode()) / 2**32
