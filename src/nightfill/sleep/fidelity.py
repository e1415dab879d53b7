"""Whether KV from the store gives the answers that KV of the engine's own gives. Pure.

Loaded KV and an engine's own prefix hit of the same length differ in where the KV comes from and in nothing else: so
they are compared with each other, and are alike to the last bit on most machines. A machine may round otherwise when it
computes the same prefix in other pieces, or together with what follows it. That is the noise, and is measured: only
what is further off than that is wrong.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from nightfill.engines.engine import BOUNDARY_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.engines.engine import Sampled

TAIL_TOKENS: Final = 8
"""Below the block of every engine's own prefix cache, so that its hit ends where the prefix does."""
MARGIN: Final = 3.0
"""The noise is the largest of a few differences; another one, of what was computed in yet other pieces, may be larger
by so much. Wrong KV makes other tokens likely, and is off by far more.
"""
FLOOR: Final = 1e-4
"""Nats. Where there is no noise at all, what is below changes no answer."""


class Outcome(enum.StrEnum):
    """The judgement on one fill."""

    EQUAL = "equal"
    """The same to the last bit."""
    NOISE = "noise"
    """Other in the last digits, as the engine itself is when it computes the prefix twice."""
    DRIFT = "drift"
    """Wrong: further off than that."""
    MISSING = "missing"
    """Not all of it could be loaded; requests would be as slow as without it, and not wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The continuations of one question. `cold` and `again` are None where they were not needed."""

    stored: Sampled
    own: Sampled
    cold: Sampled | None = None
    again: Sampled | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome, and what it rests on. Differences are in nats, infinite where other tokens became likely."""

    outcome: Outcome
    drift: float
    """Largest difference between loaded KV and the engine's own."""
    noise: float | None
    """Largest difference between the engine and itself; None where it was not measured."""
    loaded_tokens: int
    """The fewest that came from the store."""
    same_tokens: int
    """Questions whose greedy tokens were the same."""
    questions: int

    @property
    def why(self) -> str:
        """For people; holds no text of a context."""
        noise = "not needed" if self.noise is None else f"{self.noise:.2g}"
        return (
            f"{self.outcome}: {self.same_tokens} of {self.questions} continuations the same, "
            f"log-probabilities up to {self.drift:.2g} apart (noise: {noise})"
        )


def tails(tokens: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """What to ask: passages of the prefix itself, from places spread over it, each of `TAIL_TOKENS` tokens at most.

    A model that has read a text goes on with it where a passage is repeated, and looks at that place for it.
    """
    room = max(0, len(tokens) - TAIL_TOKENS)
    starts = [room * (2 * number + 1) // (2 * count) for number in range(count)]
    return [tuple(tokens[start : start + TAIL_TOKENS]) for start in starts]


def difference(one: Sampled, other: Sampled) -> float:
    """Largest difference of a log-probability, over the places up to the first whose tokens differ.

    Infinite where one's token is not even among the other's likely ones, or where one of them ended earlier.
    """
    worst = 0.0
    places = zip_longest(one.tokens, other.tokens, one.tops, other.tops)
    for a, b, here, there in places:
        if a is None or b is None or here is None or there is None or a not in there or b not in here:
            return math.inf
        worst = max(worst, *_apart(here, there))
        if a != b:
            break
    return worst


def _apart(here: Mapping[int, float], there: Mapping[int, float]) -> list[float]:
    return [abs(here[token] - there[token]) for token in here.keys() & there.keys()]


def equal(question: Question) -> bool:
    """Whether loaded KV and the engine's own gave the same to the last bit."""
    return (question.stored.tokens, question.stored.tops) == (question.own.tokens, question.own.tops)


def judge(questions: Sequence[Question], *, prefix_tokens: int) -> Verdict:
    """The verdict on a fill of `prefix_tokens` tokens; at least one question was asked."""
    loaded = min(question.stored.reused for question in questions)
    drift = max(difference(question.stored, question.own) for question in questions)
    noises = [
        difference(other, question.own)
        for question in questions
        for other in (question.cold, question.again)
        if other is not None
    ]
    noise = max(noises, default=None)
    if loaded < prefix_tokens - min(BOUNDARY_TOKENS, prefix_tokens // 2):
        outcome = Outcome.MISSING
    elif all(map(equal, questions)):
        outcome = Outcome.EQUAL
    elif math.isfinite(drift) and drift <= max(FLOOR, MARGIN * (noise or 0.0)):
        outcome = Outcome.NOISE
    else:
        outcome = Outcome.DRIFT
    return Verdict(
        outcome=outcome,
        drift=drift,
        noise=noise,
        loaded_tokens=loaded,
        same_tokens=sum(question.stored.tokens == question.own.tokens for question in questions),
        questions=len(questions),
    )
