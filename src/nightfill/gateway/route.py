"""Which engine serves a request, and which one if that fails; how long a failed one is left alone. Pure."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

HOLDS: Final = 0
"""The distance of KV that is in the engine itself."""
_FIRST_PROBE_S: Final = 0.5
_RAREST_PROBE_S: Final = 30.0


class Reason(enum.StrEnum):
    """What speaks for an engine."""

    SESSION = "session"
    """The earlier requests of the session went there."""
    HOLDER = "holder"
    """The context's KV is in the engine itself."""
    TIER = "tier"
    """It can load the context's KV from a tier."""
    LOAD = "load"
    """It has least to do."""
    EXPERIMENT = "experiment"
    """The request is in arm B of an experiment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What counts of one engine that serves the model."""

    name: str
    ejected: bool = False
    """It failed, and has not answered since."""
    tokens: int = 0
    """That our requests on it still had to compute when they were sent: prompt that is not reused, and answer."""
    distance: int | None = None
    """Of the KV of the request's context: `HOLDS`, or 1 and more for the tiers that this engine loads from, fastest
    first. None: it has no use of any.
    """


@dataclass(frozen=True, slots=True)
class Turn:
    """One engine in its place in the order."""

    index: int
    """Of the candidate."""
    reason: Reason


def serving(model: str | None, models: Sequence[str]) -> tuple[int, ...]:
    """The indices of the engines that serve `model`. Without a name, it is the only model there is.

    Raises NotFound with the names that there are; BadRequest when a name is needed.
    """
    names = sorted(set(models))
    if model is None and len(names) > 1:
        raise BadRequest(f"model is required; there are {', '.join(names)}", param="model")
    fit = tuple(index for index, name in enumerate(models) if model in (None, name))
    if not fit:
        raise NotFound(f"model {str(model)[:80]!r} is not served here; there are: {', '.join(names)}", param="model")
    return fit


def order(candidates: Sequence[Candidate], *, session: bytes | None, lead_tokens: int) -> tuple[Turn, ...]:
    """The candidates, first the one to ask first, each with what speaks for it.

    1. Ejected engines come last, and are asked all the same when there are no others.
    2. Then those that have over `lead_tokens` more tokens in flight than the least busy one that is well: no cache and
       no habit is worth such a wait.
    3. A session has an order of the engines of its own (rendezvous hashing): it stays with the first that is left, goes
       to the second while that one is away, and returns. Gateways that know the same engines agree without a word.
    4. Without a session: least distance, fewest tokens, name.
    """
    least = min((one.tokens for one in candidates if not one.ejected), default=0)

    def key(index: int) -> tuple[bool, bool, bytes, float, int, str]:
        one = candidates[index]
        crowded = one.tokens - least > lead_tokens
        if session is not None:
            return one.ejected, crowded, _weight(session, one.name), 0.0, 0, one.name
        distance = float("inf") if one.distance is None else float(one.distance)
        return one.ejected, crowded, b"", distance, one.tokens, one.name

    return tuple(Turn(index, _reason(candidates[index], session)) for index in sorted(range(len(candidates)), key=key))


def _weight(session: bytes, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=session[:64], digest_size=8).digest()


def _reason(candidate: Candidate, session: bytes | None) -> Reason:
    if session is not None:
        return Reason.SESSION
    if candidate.distance is None:
        return Reason.LOAD
    return Reason.HOLDER if candidate.distance == HOLDS else Reason.TIER


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of an engine's health."""

    failures: int = 0
    """Since it last answered: requests that it could not be asked, and probes without an answer."""

    @property
    def ejected(self) -> bool:
        """The first failure is enough: others can serve, and a probe that is answered makes it good."""
        return self.failures > 0

    def after(self, *, answered: bool) -> Health:
        """As of one more request or probe."""
        return Health() if answered else Health(self.failures + 1)

    def probe_in_s(self, *, check_s: float) -> float:
        """Seconds until it is probed next: `check_s` for one that is well; else 0.5 s, doubled with each failure, at
        most 30 s.
        """
        if not self.failures:
            return check_s
        return min(_FIRST_PROBE_S * 2.0 ** min(self.failures - 1, 16), _RAREST_PROBE_S)
