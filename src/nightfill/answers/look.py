"""What was tried of stored answers for one request, in what time, and what came of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nightfill.state.answers import Answer


class Kind(enum.StrEnum):
    """Which look-up."""

    EXACT = "exact"
    NEAR = "near"


class Result(enum.StrEnum):
    """What came of a look-up."""

    HIT = "hit"
    MISS = "miss"
    STALE = "stale"
    """There was one, older than the request allows."""
    GUARD = "guard"
    """Near ones were there, and the guard let none pass."""
    BARRED = "barred"
    """Such requests are not answered so; `Look.detail` says why."""
    BUSY = "busy"
    """Too many look-ups waited already."""
    LATE = "late"
    """It took too long."""
    FAILED = "failed"
    """The store, or what is needed to look, failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look-up."""

    kind: Kind
    result: Result
    seconds: float
    detail: str = ""
    """A word from a fixed list: why the guard refused, or what barred it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A stored answer that may serve."""

    answer: Answer
    age_s: float
    similarity: float | None = None
    """Of its question to the one that is asked, up to 1; None when they are equal."""

    @property
    def kind(self) -> Kind:
        """Which look-up found it."""
        return Kind.EXACT if self.similarity is None else Kind.NEAR


def report(looks: Iterable[Look]) -> str:
    """`exact:miss:0.08 near:guard/numbers:3.21`, with milliseconds: the form of the access log."""
    return " ".join(
        f"{look.kind}:{look.result}{'/' + look.detail if look.detail else ''}:{1000 * look.seconds:.2f}"
        for look in looks
    )
