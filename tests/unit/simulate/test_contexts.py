from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.fleets import client, fleet
from nightfill.simulate.contest import least_recent
from nightfill.simulate.contexts import ByPolicy, ByValue, Known, nothing, run, unlimited
from nightfill.simulate.fleet import DAY, Fleet

if TYPE_CHECKING:
    from collections.abc import Collection

    from nightfill.simulate.contexts import Planner

BUSY = dict.fromkeys(range(DAY), 10)


class Everything:
    """Fills whatever is not filled."""

    def order(self, known: Collection[Known], window: int, left_tokens: int) -> list[Known]:
        return [one for one in known if one.until <= window]


def value(many: Fleet) -> Planner:
    return ByValue(many, break_even=0.65)


def lru(many: Fleet) -> Planner:
    return ByPolicy(many, least_recent)


def test_a_fill_serves_from_the_next_window_on_for_as_long_as_it_lasts() -> None:
    done = run(fleet([client(BUSY)], [100], day_tokens=100, lasts=24), Everything())
    assert done.served == [[(2, 25)]]
    assert (done.hits, done.saved_tokens, done.background_tokens, done.fills) == (240, 24_000, 100, 1)
    assert done.uses == 10 * DAY


def test_a_context_is_not_known_before_its_first_use() -> None:
    done = run(fleet([client({50: 1, 51: 1})], [100], day_tokens=1000), Everything())
    assert done.served[0][0] == (52, 75)


def test_a_refill_leaves_no_gap() -> None:
    done = run(fleet([client(BUSY)], [100], day_tokens=10**6), Everything())
    assert done.hits == 10 * (DAY - 2)


@pytest.mark.parametrize("planner", ["lru", "value", "everything"])
def test_the_budget_of_a_day_is_never_exceeded_and_comes_back_at_midnight(planner: str) -> None:
    clients = [client(dict.fromkeys(range(2 * DAY), 1000), days=2, name=str(number)) for number in range(5)]
    many = fleet(clients, [100] * 5, day_tokens=700)
    done = run(many, {"lru": lru(many), "value": value(many), "everything": Everything()}[planner])
    by_day = [sum(first - 1 < DAY for of in done.served for first, _ in of)]
    by_day.append(done.fills - by_day[0])
    assert by_day == [7, 7]


def test_background_work_stays_below_the_slack_of_its_model() -> None:
    clients = [client(BUSY, name="0", model="a"), client(BUSY, name="1", model="a"), client(BUSY, name="2", model="b")]
    tight = fleet(clients, [100, 80, 100], day_tokens=10**6, slack=120)
    first = [of[0][0] for of in run(tight, Everything()).served]
    assert first == [2, 3, 2]


def test_what_does_not_fit_is_passed_over() -> None:
    clients = [client(BUSY, name="0"), client(BUSY, name="1")]
    done = run(fleet(clients, [100, 60], day_tokens=70), Everything())
    assert [len(of) for of in done.served] == [0, 1]


def test_handed_out_evenly_a_budget_lasts_all_day() -> None:
    clients = [client(BUSY, name=str(number)) for number in range(12)]
    many = fleet(clients, [10] * 12, day_tokens=240)
    at_once, evenly = (run(many, lru(many), evenly=even) for even in (False, True))
    assert at_once.fills == evenly.fills == 24
    assert max(first for of in at_once.served for first, _ in of) < DAY // 4
    assert max(first for of in evenly.served for first, _ in of) > DAY * 3 // 4


def test_value_spends_on_what_is_used_most() -> None:
    clients = [client(dict.fromkeys(range(2 * DAY), uses), days=2, name=str(uses)) for uses in (1, 5, 50, 500)]
    many = fleet(clients, [100, 100, 100, 100], day_tokens=6 * 100)
    done = run(many, value(many))
    assert sum(last + 1 - first for first, last in done.served[3]) > 0.9 * 2 * DAY
    assert done.saved_tokens > 2 * run(many, lru(many)).saved_tokens


def test_value_leaves_a_scarce_budget_to_what_is_used_regularly() -> None:
    rare = client(dict.fromkeys(range(0, 14 * DAY, 31 * 6), 1), days=14)
    office = client({day * DAY + window: 1 for day in range(14) for window in range(54, 126)}, days=14, name="1")
    many = fleet([rare, office], [100, 100], day_tokens=400)
    of_rare, of_office = run(many, value(many)).served
    assert len([first for first, _ in of_rare if first >= 7 * DAY]) <= 2, "of five uses"
    last_day = [window for first, last in of_office for window in range(first, last + 1) if window >= 13 * DAY]
    assert sum(office.uses[window] for window in last_day if window < 14 * DAY) == 72


def test_value_refreshes_before_the_expected_use_and_lets_a_fill_go_when_none_is_expected() -> None:
    office = client({day * DAY + window: 100 for day in range(7) for window in range(54, 72)}, days=7)
    many = fleet([office], [100], day_tokens=10**6)
    last_day = [(first, last) for first, last in run(many, value(many)).served[0] if first >= 6 * DAY]
    hits = sum(office.uses[window] for first, last in last_day for window in range(first, min(last + 1, 7 * DAY)))
    assert hits == 18 * 100
    assert len(last_day) <= 3


def test_the_same_trace_gives_the_same_result() -> None:
    clients = [client({window: window * number % 7 for window in range(DAY)}, name=str(number)) for number in range(6)]
    many = fleet(clients, [30, 20, 10, 40, 50, 60], day_tokens=300)
    assert run(many, value(many)) == run(many, value(many))


def test_nothing_and_everything() -> None:
    many = fleet([client({0: 5, 30: 2, 31: 1, 100: 4})], [100], day_tokens=0)
    assert (nothing(many).saved_tokens, nothing(many).uses) == (0, 12)
    assert unlimited(many).served == [[(30, 53), (100, 123)]]
    assert unlimited(many).saved_tokens == 700
