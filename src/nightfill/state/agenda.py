"""When each context is to be looked at again, so that planning costs nothing for all the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts.context import Context, Fingerprint, Outline, Tenant
    from nightfill.state.access import Usage
    from nightfill.state.budgets import Scope
    from nightfill.state.jobs import Job

CLAIM_S: Final = 60.0
"""So long what `due` gave is left alone, unless something changes: who took it may have died."""
HEADSTART_S: Final = 1.5e9
"""What has changed stands so far before its time, and so before all that is only to be looked at again."""
POSTPONED_S: Final = 1e9
"""Here stands, by its value, what was looked at once and waits until all that has changed was: between the two."""
WOKEN: Final = 8
"""So many that wait for a budget are looked at again when a job has given something back to it."""
MOST_WOKEN: Final = 500
"""So many when a limit was set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A context with all that is needed to plan it, as of one instant."""

    context: Context
    usage: Usage
    fills: tuple[Outline, ...]
    """Of its versions."""
    jobs: tuple[Job, ...]
    """Of kind `fill`, unfinished or dead, for its versions."""
    shared: bool
    """Another context has its version, too."""
    mark: float | None
    """Where it stands on the agenda; None for nowhere."""
    changed: bool
    """It was due because it changed, or was never looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What came of a look."""

    due: Due
    again_in_s: float
    priority: float = 0.0
    waits_for: Scope | None = None
    """The budget that has no room for it; when it gets some, what has the highest priority is due first."""


class Agenda(Protocol):
    """The contexts in the order in which they are to be looked at.

    A context is due at once when it is put or gets another version, when a fill of it begins, ends, or changes its
    state, when a request named it that neither a fill nor a stored answer served, and when a job to fill it is dead or
    cancelled. Each call costs O(log n) for each context that it gives or takes, and a bounded number of journeys.
    Raises StateUnavailable.
    """

    async def due(self, *, limit: int) -> list[Due]:
        """What is due, what has changed first, then in the order of time; it is not given again for `CLAIM_S`, nor to
        any other process, unless it changes meanwhile.
        """

    async def after(self, place: str, *, limit: int) -> tuple[list[Due], str]:
        """A step of a walk through all contexts, due or not, from `place` on, and the next place; both begin and end
        are the empty one. Not quite `limit` is kept to. Contexts that are put meanwhile may be left out.
        """

    async def having(self, tenant: Tenant, version: Fingerprint) -> list[Due]:
        """The contexts that have this version."""

    async def looked(self, looks: Sequence[Looked]) -> None:
        """Set when each is to be looked at next; what has changed since it was given stays due."""
