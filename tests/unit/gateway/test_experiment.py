from __future__ import annotations

import math
import random
from typing import Any

import pytest

from nightfill.config import ExperimentSettings
from nightfill.engines.engine import Tokens
from nightfill.errors import BadRequest
from nightfill.gateway.experiment import (
    KEPT,
    Arm,
    Drift,
    Sampled,
    Tally,
    arm_of,
    measured,
    parse_choice,
    reason_to_stop,
)
from nightfill.gateway.relay import Trip

KNOWN = "baaaaabbabba"
SESSIONS = [b"session %d" % number for number in range(4000)]


def in_b(name: str = "x", share: float = 0.25) -> set[bytes]:
    return {who for who in SESSIONS if arm_of(name, share, who) is Arm.B}


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, len(SESSIONS))])
def test_a_share_of_none_and_of_all_is_exact(share: float, count: int) -> None:
    assert len(in_b(share=share)) == count


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5])
def test_the_share_is_kept(share: float) -> None:
    deviation = math.sqrt(share * (1 - share) / len(SESSIONS))
    assert abs(len(in_b(share=share)) / len(SESSIONS) - share) < 4 * deviation


def test_a_session_stays_in_its_arm() -> None:
    assert in_b() == in_b()
    # Known values: another release or another gateway of the fleet must not draw anew.
    assert [arm_of("speculation", 0.5, b"session %d" % number).value for number in range(12)] == list(KNOWN)


def test_a_larger_share_keeps_those_that_were_in_b() -> None:
    assert in_b(share=0.1) < in_b(share=0.3)


def test_two_experiments_draw_independently() -> None:
    both = in_b("x", 0.5) & in_b("y", 0.5)
    assert 0.2 < len(both) / len(SESSIONS) < 0.3


@pytest.mark.parametrize(("said", "meant"), [(b"x=a", ("x", Arm.A)), (b"my_x-1=b", ("my_x-1", Arm.B))])
def test_an_arm_can_be_asked_for(said: bytes, meant: tuple[str, Arm]) -> None:
    assert parse_choice(said) == meant


@pytest.mark.parametrize("said", [b"", b"x", b"x=", b"x=c", b"x=B", b"x=b=b"])
def test_an_arm_that_there_is_not_cannot(said: bytes) -> None:
    with pytest.raises(BadRequest, match="NAME=a"):
        parse_choice(said)


def trip(**tokens: Any) -> Trip:
    return Trip(engine="e", asked_s=10.0, first_s=10.5, content_s=11.0, tokens=Tokens(**tokens))


def test_a_stream_has_all_measures() -> None:
    values = measured(trip(prompt=50, output=21, compute_s=1.5), streamed=True, ended_s=15.0)
    assert values == {
        "ttft_s": 1.0,
        "inter_token_s": 0.2,
        "tokens_per_s": 4.2,
        "compute_s": 1.5,
        "prompt_tokens": 50.0,
        "output_tokens": 21.0,
    }


def test_what_nobody_can_know_is_left_out() -> None:
    assert measured(trip(output=4), streamed=False, ended_s=12.0) == {"tokens_per_s": 2.0, "output_tokens": 4.0}
    assert measured(trip(), streamed=True, ended_s=12.0) == {"ttft_s": 1.0}
    assert measured(trip(output=1), streamed=True, ended_s=12.0).keys() == {"ttft_s", "tokens_per_s", "output_tokens"}


def test_however_many_values_come_a_fair_sample_is_kept() -> None:
    sampled, rng = Sampled(), random.Random(1)
    for number in range(20 * KEPT):
        sampled.add(float(number), rng)
    assert len(sampled.values) == KEPT
    assert (sampled.count, sampled.total) == (20 * KEPT, sum(range(20 * KEPT)))
    middle = sum(sampled.values) / KEPT
    assert abs(middle / (20 * KEPT) - 0.5) < 0.05  # of the last ones alone it would be 0.975


def tally(requests: int, failures: int) -> Tally:
    return Tally(requests=requests, failures=failures)


def experiment(**given: Any) -> ExperimentSettings:
    return ExperimentSettings(name="x", a="one", b="two", **given)


@pytest.mark.parametrize(
    ("a", "b", "stops"),
    [
        ((0, 0), (20, 20), True),
        ((0, 0), (19, 19), False),  # too few to decide on
        ((100, 0), (20, 1), False),  # 0.05 is not over 0.05
        ((100, 0), (20, 2), True),
        ((100, 90), (100, 90), False),  # both are bad
        ((100, 90), (100, 96), True),
        ((100, 0), (1000, 50), False),
        ((100, 0), (1000, 51), True),
        ((0, 0), (0, 0), False),
    ],
)
def test_it_stops_when_b_fails_more_often_by_too_much(a: tuple[int, int], b: tuple[int, int], stops: bool) -> None:
    reason = reason_to_stop(experiment(), tally(*a), tally(*b), None)
    assert bool(reason) == stops
    assert not stops or f"failed {b[1]} of {b[0]}" in reason


@pytest.mark.parametrize(
    ("prompts", "drift", "noise", "max_drift", "stops"),
    [
        (20, 0.5, 0.1, 0.3, True),
        (20, 0.5, 0.3, 0.3, False),  # A is as far from itself
        (19, 0.5, 0.1, 0.3, False),
        (20, 0.5, 0.1, 0.0, False),  # no bound
        (20, math.inf, 0.0, 100.0, True),
        (20, math.inf, math.inf, 100.0, True),
    ],
)
def test_it_stops_when_b_says_something_else(
    prompts: int, drift: float, noise: float, max_drift: float, stops: bool
) -> None:
    found = Drift(prompts=prompts, same=0, drift=drift, noise=noise)
    assert bool(reason_to_stop(experiment(max_drift=max_drift), tally(0, 0), tally(0, 0), found)) == stops
