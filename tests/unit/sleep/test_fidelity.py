from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from nightfill.engines.engine import Sampled
from nightfill.sleep.fidelity import (
    FLOOR,
    MARGIN,
    TAIL_TOKENS,
    Outcome,
    Question,
    difference,
    judge,
    tails,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX = 512


def said(off: float = 0.0, *, tokens: Sequence[int] = (1, 2, 3), reused: int = PREFIX) -> Sampled:
    """A continuation whose log-probabilities are `off` from those of the others."""
    return Sampled(tokens=tuple(tokens), tops=tuple({t: -0.5 + off, 9: -2.0} for t in tokens), reused=reused)


def asked(
    stored: float = 0.0, *, cold: float | None = 0.02, again: float | None = 0.01, reused: int = PREFIX
) -> Question:
    return Question(
        stored=said(stored, reused=reused),
        own=said(),
        cold=None if cold is None else said(cold, reused=0),
        again=None if again is None else said(again),
    )


@pytest.mark.parametrize(
    ("questions", "outcome"),
    [
        ([asked()], Outcome.EQUAL),
        ([asked(cold=None, again=None)], Outcome.EQUAL),
        ([asked(), asked(0.02 * MARGIN)], Outcome.NOISE),
        ([asked(), asked(0.02 * MARGIN + 0.001)], Outcome.DRIFT),
        ([asked(0.001), asked(cold=0.0, again=0.001)], Outcome.NOISE),
        ([asked(FLOOR / 2, cold=0.0, again=0.0)], Outcome.NOISE),
        ([asked(FLOOR * 2, cold=0.0, again=0.0)], Outcome.DRIFT),
        ([asked(0.5, cold=None, again=None)], Outcome.DRIFT),
        ([asked(0.7), asked()], Outcome.DRIFT),
        ([asked(reused=PREFIX - 8)], Outcome.EQUAL),
        ([asked(), asked(reused=PREFIX - 9)], Outcome.MISSING),
        ([asked(0.7, reused=0)], Outcome.MISSING),
    ],
)
def test_only_what_is_further_off_than_the_noise_is_drift(questions: list[Question], outcome: Outcome) -> None:
    assert judge(questions, prefix_tokens=PREFIX).outcome is outcome


def test_tokens_that_the_other_finds_unlikely_are_drift_whatever_the_noise() -> None:
    other = Question(stored=said(tokens=(5, 6)), own=said(tokens=(1, 2)), cold=said(tokens=(7, 8)), again=said())
    verdict = judge([other], prefix_tokens=PREFIX)
    assert (verdict.outcome, verdict.drift, verdict.noise) == (Outcome.DRIFT, math.inf, math.inf)
    assert verdict.same_tokens == 0


def test_a_verdict_says_what_it_rests_on() -> None:
    verdict = judge([asked(0.7), asked()], prefix_tokens=PREFIX)
    assert (verdict.loaded_tokens, verdict.same_tokens, verdict.questions) == (PREFIX, 2, 2)
    assert (verdict.drift, verdict.noise) == pytest.approx((0.7, 0.02))
    assert verdict.why == "drift: 2 of 2 continuations the same, log-probabilities up to 0.7 apart (noise: 0.02)"
    assert "noise: not needed" in judge([asked(cold=None, again=None)], prefix_tokens=PREFIX).why


def test_differences_count_up_to_the_first_other_token() -> None:
    near = Sampled(tokens=(1, 2, 3), tops=({1: -0.1}, {2: -0.6, 4: -0.7}, {3: -0.1}), reused=0)
    tie = Sampled(tokens=(1, 4, 7), tops=({1: -0.1}, {4: -0.6, 2: -0.7}, {7: -9.0}), reused=0)
    assert difference(near, tie) == pytest.approx(0.1), "two tokens that are nearly alike changed places"
    assert difference(near, near) == 0
    short = Sampled(tokens=(1,), tops=({1: -0.1},), reused=0)
    assert difference(near, short) == math.inf


@pytest.mark.parametrize(("length", "count"), [(5000, 3), (5000, 1), (TAIL_TOKENS, 2), (3, 2), (1, 1)])
def test_questions_are_passages_from_all_over_the_prefix(length: int, count: int) -> None:
    found = tails(range(length), count)
    assert len(found) == count
    assert all(1 <= len(tail) <= TAIL_TOKENS for tail in found)
    assert [tail[0] for tail in found] == sorted(tail[0] for tail in found)
    if length > 100 and count == 3:
        assert [tail[0] * count // length for tail in found] == [0, 1, 2]
