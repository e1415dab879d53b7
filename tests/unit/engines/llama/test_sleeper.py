from __future__ import annotations

import os

import pytest

from nightfill.engines.engine import Sampled
from nightfill.engines.llama.sleeper import resident_bytes, unlike

TOPS = ({5: -0.1, 6: -2.5, 7: -4.0}, {8: -0.70, 9: -0.71, 3: -5.0})


def sampled(*tokens: int, tops: tuple[dict[int, float], ...] = TOPS) -> Sampled:
    return Sampled(tokens=tokens, tops=tops, reused=0)


def test_a_model_is_like_itself_also_where_the_device_rounds_otherwise() -> None:
    assert unlike(sampled(5, 8), sampled(5, 8)) == ""
    assert unlike(sampled(5, 8), sampled(5, 8, tops=({5: -0.12, 6: -2.45, 7: -4.0}, TOPS[1]))) == ""
    assert unlike(sampled(5, 8), sampled(5, 9)) == "", "both are as likely"


@pytest.mark.parametrize(
    ("now", "how"),
    [
        (sampled(6, 8), "another token at place 0"),
        (sampled(5, 3), "another token at place 1"),
        (sampled(5, 4), "another token at place 1"),
        (sampled(5, 8, tops=({5: -0.3, 6: -2.5, 7: -4.0}, TOPS[1])), "log-probabilities at place 0 are 0.2 apart"),
        (sampled(5, 8, tops=(TOPS[0], {8: -0.7, 11: -0.8, 12: -5.0})), "other tokens are likely at place 1"),
    ],
)
def test_another_model_is_not(now: Sampled, how: str) -> None:
    assert unlike(sampled(5, 8), now) == how


def test_after_a_toss_up_nothing_is_compared() -> None:
    after = ({1: -0.1}, {2: -0.1})
    assert unlike(sampled(8, 1, tops=(TOPS[1], after[0])), sampled(9, 2, tops=(TOPS[1], after[1]))) == ""


def test_memory_is_that_of_a_process_and_none_of_one_that_is_gone() -> None:
    assert 1 << 20 < resident_bytes(os.getpid()) < 1 << 36
    assert resident_bytes(2**22 + 1) == 0
