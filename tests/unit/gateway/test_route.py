from __future__ import annotations

import pytest

from nightfill.errors import BadRequest, NotFound
from nightfill.gateway.route import Candidate, order, rest_s

A, B = Candidate(model="a"), Candidate(model="b")


def a(in_flight: int = 0, *, resting: bool = False) -> Candidate:
    return Candidate(model="a", in_flight=in_flight, resting=resting)


@pytest.mark.parametrize(
    ("model", "candidates", "expected"),
    [
        ("a", [A], (0,)),
        (None, [A], (0,)),
        (None, [A, A], (0, 1)),
        ("b", [A, B, B], (1, 2)),
        ("a", [a(2), a(1), a(0)], (2, 1, 0)),
        ("a", [a(1), a(1)], (0, 1)),
        ("a", [a(0, resting=True), a(9)], (1, 0)),
        ("a", [a(3, resting=True), a(1, resting=True)], (1, 0)),
        ("a", [B, a(5), B, a(4)], (3, 1)),
    ],
)
def test_the_least_busy_engine_that_is_well_comes_first(
    model: str | None, candidates: list[Candidate], expected: tuple[int, ...]
) -> None:
    assert order(model, candidates) == expected


def test_an_unknown_model_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(NotFound, match="'c' is not served here; there are: a, b"):
        order("c", [B, A, B])


def test_a_name_is_needed_where_there_are_several_models() -> None:
    with pytest.raises(BadRequest, match="model is required; there are a, b"):
        order(None, [B, A])


def test_who_fails_again_and_again_rests_longer_but_not_for_ever() -> None:
    assert [rest_s(failures) for failures in (1, 2, 3, 6, 50)] == [1, 2, 4, 30, 30]
