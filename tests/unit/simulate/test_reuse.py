from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.simulate.reuse import AGES, Reuse, group_of, rates

if TYPE_CHECKING:
    from collections.abc import Sequence

counts = st.lists(st.integers(0, 500), min_size=AGES, max_size=AGES)
NONE = [0] * AGES


def best_by_trying(returned: Sequence[int], aged: Sequence[int], waiting: Sequence[int], start: int) -> float:
    """The most uses per second, over each date at which a block of this age could be given up."""
    best = uses = seconds = 0.0
    there = 1.0
    for age in range(start, AGES):
        back = (returned[age] + 0.1) / (returned[age] + aged[age] + waiting[age] + 1)
        width = 2.0**age - (2.0 ** (age - 1) if age else 0.0)
        uses += there * back
        seconds += there * width * (1 - back / 2)
        there *= 1 - back
        best = max(best, uses / seconds)
    return best


@given(counts, counts, counts)
def test_the_rate_of_an_age_is_the_best_that_any_date_of_giving_up_yields(
    returned: list[int], aged: list[int], waiting: list[int]
) -> None:
    expected = [best_by_trying(returned, aged, waiting, age) for age in range(AGES)]
    assert rates(returned, aged, waiting) == pytest.approx(expected)


def test_with_nothing_known_what_was_used_longer_ago_is_worth_less() -> None:
    found = rates(NONE, NONE, NONE)
    assert found == sorted(found, reverse=True)
    assert len(set(found[1:])) == AGES - 1


def test_blocks_that_come_back_after_minutes_are_worth_more_just_before_than_at_once() -> None:
    returned, aged = NONE.copy(), [100] * AGES
    returned[7], aged[7] = 90, 10  # 64 s to 128 s
    found = rates(returned, aged, NONE)
    assert found[7] == max(found)
    assert found[2] < found[5] < found[7] > found[8]


def test_a_block_used_often_enough_stays_in_its_group_and_a_partial_one_is_apart() -> None:
    groups = [group_of(uses, partial=partial) for uses in (1, 2, 3, 4, 50) for partial in (False, True)]
    assert groups == [0, 1, 2, 3, 4, 5, 6, 7, 6, 7]


def test_cohorts_grow_older_and_what_returns_counts_at_its_age() -> None:
    reuse = Reuse()
    first = reuse.cohort(0.0)
    for _ in range(3):
        reuse.waits(first, 0)
    reuse.cohort(0.5)
    assert first.age == 0
    reuse.cohort(100.0)  # past several ages at once
    assert first.age == 7
    before = reuse.rates()
    reuse.used(first, 0)
    reuse.used(first, 0)
    after = reuse.rates()
    assert after[0][7] > before[0][7]
    assert after[1] == before[1]
    reuse.cohort(1e9)
    assert first.age == AGES - 1  # the last one never ends
    assert first.waiting[0] == 1
