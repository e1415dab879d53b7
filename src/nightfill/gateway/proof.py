"""Whether the engine reused what was promised. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from nightfill.engines.engine import BOUNDARY_TOKENS

PREFIX_TOKENS: Final = 32
"""Fewer reused tokens than this are a chat template's own, not a cache's merit."""


class Layer(enum.StrEnum):
    """What served a request."""

    ANSWER = "answer"
    FILL = "fill"
    PREFIX = "prefix"
    COLD = "cold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement on one request."""

    layer: Layer
    proven: bool
    """False while the engine has not said what it reused; `layer` is then what was promised."""
    broken: bool
    """The engine reused less than it had loaded, or the store held less than the book claims."""
    reason: str = ""


def judge(*, planned: int, promised: int, reused: int | None, claimed_ready: bool) -> Verdict:
    """Compare tokens.

    planned: tokens that the book says are stored; 0 when no fill was to be used. promised: tokens that the engine
    holds of them for this request. reused: tokens that it says it did not compute; None when it says nothing.
    claimed_ready: the book calls the fill ready, so that all of `planned` should have been loaded.
    """
    if claimed_ready and promised < _least(planned):
        return Verdict(
            layer=_unpromised(reused) if promised == 0 else _kept(promised, reused),
            proven=reused is not None,
            broken=True,
            reason=f"{promised} of {planned} tokens could be loaded",
        )
    if promised == 0:
        return Verdict(layer=_unpromised(reused), proven=reused is not None, broken=False)
    broken = reused is not None and reused < _least(promised)
    return Verdict(
        layer=_kept(promised, reused),
        proven=reused is not None,
        broken=broken,
        reason=f"{reused} of {promised} loaded tokens were reused" if broken else "",
    )


def _least(tokens: int) -> int:
    """How many of `tokens` must come back for the promise to be kept."""
    return max(tokens - BOUNDARY_TOKENS, (tokens + 1) // 2)


def _kept(promised: int, reused: int | None) -> Layer:
    if reused is None or reused >= _least(promised):
        return Layer.FILL
    return _unpromised(reused)


def _unpromised(reused: int | None) -> Layer:
    return Layer.PREFIX if reused is not None and reused >= PREFIX_TOKENS else Layer.COLD
