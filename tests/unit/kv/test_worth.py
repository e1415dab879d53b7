from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.kv.worth import SMALL_BYTES, WEIGHT, Rates, worth_loading

MB = 1_000_000


@pytest.mark.parametrize(
    ("tokens", "nbytes", "rates", "restore_s", "recompute_s", "restore"),
    [
        (1000, 100 * MB, Rates(), None, None, True),
        (1000, 100 * MB, Rates(bytes_per_s=100 * MB), 1.0, None, True),
        (1000, 100 * MB, Rates(tokens_per_s=1e9), None, 1e-6, True),
        (1000, 100 * MB, Rates(bytes_per_s=100 * MB, tokens_per_s=500), 1.0, 2.0, True),
        (1000, 100 * MB, Rates(bytes_per_s=100 * MB, tokens_per_s=1000), 1.0, 1.0, True),
        (1000, 100 * MB, Rates(bytes_per_s=100 * MB, tokens_per_s=2000), 1.0, 0.5, False),
        (1000, 100 * MB, Rates(bytes_per_s=100 * MB, tokens_per_s=1000, latency_s=0.25), 1.25, 1.0, False),
        (16, 2 * MB, Rates(bytes_per_s=100 * MB, tokens_per_s=1000, latency_s=0.001), 0.021, 0.016, False),
        (0, 0, Rates(bytes_per_s=1, tokens_per_s=1), 0.0, 0.0, True),
    ],
)
def test_the_quicker_way_is_taken_and_loading_where_nobody_knows(
    tokens: int, nbytes: int, rates: Rates, restore_s: float | None, recompute_s: float | None, restore: bool
) -> None:
    found = worth_loading(tokens, nbytes, rates)
    assert found.restore_s == pytest.approx(restore_s)
    assert found.recompute_s == pytest.approx(recompute_s)
    assert found.restore is restore


def test_the_first_observation_counts_whole_and_later_ones_by_their_weight() -> None:
    first = Rates().after(load_bytes=100 * MB, load_s=1.0, prefill_tokens=1000, prefill_s=2.0)
    assert first == Rates(bytes_per_s=100 * MB, tokens_per_s=500)
    second = first.after(load_bytes=300 * MB, load_s=1.0)
    assert second.bytes_per_s == pytest.approx(100 * MB + WEIGHT * 200 * MB)
    assert second.tokens_per_s == 500


def test_a_small_load_tells_of_the_latency_and_a_large_one_of_the_bandwidth() -> None:
    rates = Rates().after(load_bytes=4096, load_s=0.5)
    assert rates == Rates(latency_s=0.5)
    assert rates.after(load_bytes=100 * MB, load_s=1.5).bytes_per_s == pytest.approx(100 * MB)
    assert Rates(latency_s=9.0).after(load_bytes=100 * MB, load_s=1.0).bytes_per_s == pytest.approx(200 * MB)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_what_cannot_be_observed_changes_nothing(seconds: float) -> None:
    rates = Rates(bytes_per_s=1.0, tokens_per_s=1.0)
    assert rates.after(load_bytes=MB, load_s=seconds, prefill_tokens=5, prefill_s=seconds) == rates
    assert rates.after(load_bytes=0, load_s=1.0, prefill_tokens=0, prefill_s=1.0) == rates


@given(
    st.lists(st.tuples(st.integers(1, 1 << 40), st.floats(1e-9, 1e6), st.integers(1, 1 << 20), st.floats(1e-9, 1e6))),
    st.integers(0, 1 << 20),
    st.integers(0, 1 << 40),
)
def test_estimates_stay_finite_whatever_is_observed(
    observed: list[tuple[int, float, int, float]], tokens: int, nbytes: int
) -> None:
    rates = Rates()
    for load_bytes, load_s, prefill_tokens, prefill_s in observed:
        rates = rates.after(load_bytes=load_bytes, load_s=load_s, prefill_tokens=prefill_tokens, prefill_s=prefill_s)
    found = worth_loading(tokens, nbytes, rates)
    for seconds in (found.restore_s, found.recompute_s):
        assert seconds is None or 0 <= seconds < math.inf
    if any(load_bytes >= SMALL_BYTES for load_bytes, *_ in observed):
        assert found.restore_s is not None


def test_the_rule_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, nightfill.kv.worth; print([m for m in ('cryptography', 'msgspec', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
