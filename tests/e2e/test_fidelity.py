"""Greedy replies with a filled context are those without, within the noise of two runs without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from documents import clean_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.e2e

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "fidelity.py"


@pytest.fixture(scope="module")
def found(serve_home: Path) -> Mapping[str, Any]:
    arguments = ["--model", "demo:tiny", "--functions", "40", "--questions", "4"]
    run = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments],
        env={**os.environ, **clean_environment(serve_home)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    last: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return last


def test_the_comparison_is_a_fair_one(found: Mapping[str, Any]) -> None:
    assert found["reused_tokens"] >= 0.95 * found["context_tokens"]
    # Else the context's own end would be a small batch, which a fill avoids and a cold request does not.
    assert found["context_tokens"] % found["batch_tokens"] >= 64


def test_cold_replies_repeat_to_the_last_bit(found: Mapping[str, Any]) -> None:
    assert found["cold_equal_same_split"] == 1
    assert found["max_abs_dlogprob_cold_same_split"] == 0


def test_a_filled_reply_is_that_of_the_engine_s_own_prefix_cache_to_the_last_bit(found: Mapping[str, Any]) -> None:
    assert found["filled_equal_own_cache"] == 1
    assert found["max_abs_dlogprob_filled_own_cache"] == 0


def test_a_restart_of_the_engine_changes_nothing(found: Mapping[str, Any]) -> None:
    assert found["restarted_equal"] == found["filled_equal"]
    assert found["max_abs_dlogprob_restarted"] == found["max_abs_dlogprob_filled"]


def test_filled_replies_are_as_near_to_cold_ones_as_these_are_to_each_other(found: Mapping[str, Any]) -> None:
    """Another split of the same cold prompt into batches is the noise that nobody calls a mistake."""
    assert found["filled_equal"] >= min(found["cold_equal_other_split"], found["own_cache_equal"])
    noise = max(found["max_abs_dlogprob_cold_other_split"], found["max_abs_dlogprob_own_cache"])
    assert found["max_abs_dlogprob_filled"] <= noise
