import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.bench.query import Sample
from nightfill.bench.stats import (
    busy_seconds,
    cost,
    percentile,
    queries_to_break_even,
    ratio_of_means,
    spread,
    summarise,
)


def sample(index: int = 0, *, ttft_s: float | None = 1.0, total_s: float = 2.0, **rest: object) -> Sample:
    return Sample(index=index, due_s=rest.pop("due_s", 0.0), ttft_s=ttft_s, total_s=total_s, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.5),
        ([1.0, 2.0, 3.0, 4.0], 0, 1.0),
        ([1.0, 2.0, 3.0, 4.0], 100, 4.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 25, 2.0),
        ([float(n) for n in range(101)], 99, 99.0),
        ([15.0, 20.0, 35.0, 40.0, 50.0], 40, 29.0),
    ],
)
def test_a_percentile_lies_between_the_closest_ranks(values: list[float], q: float, expected: float) -> None:
    assert percentile(values, q) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_never_leave_the_values_nor_change_order(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found.min <= found.p50 <= found.p95 <= found.p99 <= found.max
    assert (found.min, found.max, found.n) == (min(values), max(values), len(values))


def test_nothing_has_no_spread() -> None:
    assert spread([]) is None


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0.0),
        ([(0, 2), (5, 6)], 3.0),
        ([(0, 2), (1, 3)], 3.0),
        ([(0, 10), (2, 3), (9, 11)], 11.0),
        ([(5, 6), (0, 1)], 2.0),
    ],
)
def test_time_in_which_queries_overlap_counts_once(spans: list[tuple[float, float]], expected: float) -> None:
    assert busy_seconds(spans) == pytest.approx(expected)


def test_failed_queries_do_not_improve_the_times_but_are_counted() -> None:
    arm = summarise(
        [
            sample(0, ttft_s=4.0),
            sample(1, ttft_s=0.001, error="HTTP 500: boom"),
            sample(2, ttft_s=None, error="HTTP 500: boom"),
        ]
    )
    assert arm.ttft_s is not None
    assert (arm.ttft_s.n, arm.ttft_s.mean) == (1, 4.0)
    assert (arm.queries, arm.failed, dict(arm.errors)) == (3, 2, {"HTTP 500: boom": 2})


def test_tokens_that_a_server_does_not_report_are_unknown_and_not_zero() -> None:
    assert summarise([sample(0), sample(1)]).cached_tokens_mean is None
    assert summarise([sample(0, cached_tokens=10), sample(1)]).cached_tokens_mean == 10


def test_layers_are_counted() -> None:
    assert dict(summarise([sample(0, layer="fill"), sample(1, layer="cold"), sample(2, layer="fill")]).layers) == {
        "fill": 2,
        "cold": 1,
    }


def test_the_ratio_of_steady_values_has_no_spread() -> None:
    found = ratio_of_means([10.0] * 5, [0.5] * 100, random.Random(1))
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((20.0, 20.0, 20.0))


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = random.Random(7)
    held = 0
    for _ in range(60):
        slow = [rng.gauss(10, 1) for _ in range(40)]
        fast = [rng.gauss(1, 0.2) for _ in range(40)]
        found = ratio_of_means(slow, fast, rng)
        assert found is not None
        assert found.low < found.estimate < found.high
        held += found.low <= 10.0 <= found.high
    assert 50 <= held <= 60  # 95 % of 60 are 57; a seed is fixed, so this does not flicker


def test_the_same_seed_gives_the_same_interval() -> None:
    slow, fast = [3.0, 4.0, 9.0], [1.0, 2.0]
    assert ratio_of_means(slow, fast, random.Random(3)) == ratio_of_means(slow, fast, random.Random(3))


@pytest.mark.parametrize(("slow", "fast"), [([], [1.0]), ([1.0], []), ([1.0], [0.0])])
def test_there_is_no_ratio_to_nothing(slow: list[float], fast: list[float]) -> None:
    assert ratio_of_means(slow, fast, random.Random(0)) is None


def test_cost_is_the_busy_time_and_the_share_of_the_background_work() -> None:
    arm = summarise([sample(n, due_s=10.0 * n, total_s=2.0) for n in range(100)])  # busy for 200 s
    price = cost(arm, serving_per_hour=3.6, background_per_hour=1.8, background_s=100.0)
    assert price is not None
    assert price.serving_per_query == pytest.approx(0.002)
    assert price.background_per_query == pytest.approx(0.0005)
    assert price.total_per_query == pytest.approx(0.0025)


def test_there_is_no_cost_per_query_when_all_failed() -> None:
    assert cost(summarise([sample(0, error="x")]), serving_per_hour=1.0) is None


def test_background_work_pays_after_its_cost_is_saved_and_never_if_nothing_is() -> None:
    cold = cost(summarise([sample(0, total_s=10.0)]), serving_per_hour=2.57)
    filled = cost(summarise([sample(0, total_s=0.0)]), serving_per_hour=2.57)
    assert cold is not None
    assert filled is not None
    # one fill as long as one cold prefill, at 1.66 against 2.57 an hour: not even one reuse
    assert queries_to_break_even(cold, filled, background_per_hour=1.66, background_s=10.0) == pytest.approx(
        0.646, abs=1e-3
    )
    assert queries_to_break_even(filled, cold, background_per_hour=1.66, background_s=10.0) is None
