"""Has some of the fills that served requests looked over in idle time."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from nightfill.errors import BudgetSpent, QueueFull, StateError
from nightfill.gateway.proof import Layer
from nightfill.state.jobs import JobKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightfill.gateway.layers import Plan
    from nightfill.gateway.proof import Verdict
    from nightfill.state.jobs import JobQueue

_LOG: Final = logging.getLogger(__name__)
PRIORITY: Final = -1.0
"""Below every fill's."""
_QUEUE_S: Final = 2.0


class Audits:
    """Draws requests by chance. A fill that waits for its look already is not queued twice, so the queue is bounded by
    the number of fills.
    """

    def __init__(self, queue: JobQueue, *, share: float, draw: Callable[[], float] = random.random) -> None:
        """`share` of the requests that a fill served, 0 to 1; `draw` gives numbers from 0 to below 1."""
        self._queue = queue
        self._share = share
        self._draw = draw

    async def consider(self, plan: Plan, verdict: Verdict) -> None:
        """Perhaps queue a look at the fill that served a request. Never raises: an audit is worth no error."""
        if plan.fill is None or verdict.layer is not Layer.FILL or verdict.broken or not verdict.proven:
            return
        if self._draw() >= self._share:
            return
        try:
            async with asyncio.timeout(_QUEUE_S):
                await self._queue.enqueue(
                    kind=JobKind.VERIFY,
                    target=str(plan.fill),
                    tenant=plan.fill.tenant,
                    label=plan.context or "",
                    priority=PRIORITY,
                    user=plan.user,
                    needs=plan.fill.signature,
                    reserve_tokens=plan.planned_tokens,
                )
        except (StateError, QueueFull, BudgetSpent, TimeoutError) as exc:
            _LOG.warning("a fill was not queued for its audit: %s", exc or "no answer in time")
