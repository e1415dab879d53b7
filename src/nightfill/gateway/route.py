"""Which engine serves a request, and which one if that fails. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nightfill.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What counts of one engine."""

    model: str
    in_flight: int = 0
    """Requests that we have on it now."""
    resting: bool = False
    """It failed lately."""


def order(model: str | None, candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """The indices of the engines that serve `model`, first the one to ask first: the least busy of those that are well,
    the earlier one among equals. Engines that rest come last. Without a name, it is the only model there is.

    Raises NotFound with the names that there are; BadRequest when a name is needed.
    """
    names = sorted({candidate.model for candidate in candidates})
    if model is None and len(names) > 1:
        raise BadRequest(f"model is required; there are {', '.join(names)}", param="model")
    fit = [index for index, candidate in enumerate(candidates) if model in (None, candidate.model)]
    if not fit:
        raise NotFound(f"model {str(model)[:80]!r} is not served here; there are: {', '.join(names)}", param="model")
    return tuple(sorted(fit, key=lambda index: (candidates[index].resting, candidates[index].in_flight)))


def rest_s(failures: int) -> float:
    """How long an engine rests that failed so often in a row, at least once: 1 s, doubled each time, at most 30 s."""
    return min(2.0 ** min(failures - 1, 5), 30.0)
