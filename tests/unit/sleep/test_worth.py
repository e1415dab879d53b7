from __future__ import annotations

from dataclasses import replace

import pytest

from nightfill.sleep.worth import Case, Speeds, worth
from nightfill.state.access import Usage

NOW_S = 1000 * 3600.0
BUSY = Usage(last_access_s=NOW_S - 5, accesses_7d=20, broken_7d=0, hours={999: 10, 998: 10})
NEVER = Usage(last_access_s=None, accesses_7d=0, broken_7d=0)
CASE = Case(
    usage=BUSY,
    since_s=NOW_S - 7200,
    put_at_s=NOW_S - 7200,
    now_s=NOW_S,
    ttl_s=4 * 3600.0,
    tokens=1000,
    speeds=Speeds(prefill=100.0, fill=50.0, restore=1000.0),
)


def test_seconds_saved_per_second_of_background_work() -> None:
    found = worth(CASE)
    assert found.saved_s == pytest.approx(40 * (10 - 1))
    assert found.fill_s == pytest.approx(20)
    assert found.score == pytest.approx(18)


def test_what_is_stored_already_costs_nothing_again() -> None:
    assert worth(replace(CASE, stored_tokens=750)).score == pytest.approx(4 * 18)
    assert worth(replace(CASE, stored_tokens=1000)).score == float("inf")


def test_loading_that_is_slower_than_computing_saves_nothing() -> None:
    slow = replace(CASE, speeds=Speeds(prefill=100.0, fill=50.0, restore=80.0))
    assert worth(slow).score == 0


def test_a_new_context_counts_as_used_once_at_once_and_less_as_time_passes() -> None:
    new = replace(CASE, usage=NEVER, put_at_s=NOW_S, since_s=NOW_S, speeds=Speeds(prefill=1, fill=1, restore=1e9))
    assert worth(new).score == pytest.approx(1)
    assert worth(replace(new, put_at_s=NOW_S - 3600, since_s=NOW_S - 3600)).score == pytest.approx(0.5)


def test_a_new_version_is_new_although_the_old_one_was_used() -> None:
    assert worth(replace(CASE, put_at_s=NOW_S)).score > worth(CASE).score
