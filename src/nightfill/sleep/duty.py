"""What workers do beside filling: one protocol for all kinds of background work that rest on filled contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.engines.engine import Description, Engine
    from nightfill.sleep.fill import Gone, Stopped
    from nightfill.sleep.gatekeeper import Gatekeeper
    from nightfill.sleep.lease import HeldLease
    from nightfill.sleep.retry import Failure
    from nightfill.state.jobs import JobKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """It is done. `outcome`, one word of a few, is counted; `note` is for people, and holds no text of a context."""

    outcome: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where a job is done. The lease is renewed meanwhile by the worker."""

    engine: Engine | None
    """One that computes what the job needs; None for a job that needs none."""
    gate: Gatekeeper
    """To be asked before each step; it ends a step when live requests come, or the worker is to stop."""


class Duty(Protocol):
    """One kind of background work: when it is due, and how it is done. Of one worker's event loop."""

    @property
    def kind(self) -> JobKind:
        """Of the jobs that `run` takes."""

    async def plan(self, descriptions: Sequence[Description]) -> None:
        """Queue what is due, and cancel what nobody needs any more. Called after each planning of fills, so cheap where
        nothing has changed; a target has one job, however often it is queued.

        Raises StateError, QueueFull; a spent budget is no error.
        """

    async def run(self, held: HeldLease, desk: Desk) -> Done | Stopped | Gone | Failure:
        """Do one job. What engines compute is told to `held.computed` as soon as it is known.

        May be cancelled at any instant, and done again from its start: what is done already must not be paid twice.
        Raises LeaseLost and other NightfillError.
        """
