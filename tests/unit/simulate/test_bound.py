from __future__ import annotations

import random
from itertools import accumulate, chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.fleets import client, fleet
from nightfill.simulate.bound import Bound, best
from nightfill.simulate.contexts import ByValue, Clairvoyant, run, unlimited
from nightfill.simulate.fleet import DAY, Fleet


def served(uses: list[int], fills: tuple[int, ...], lasts: int) -> int:
    windows = {window for fill in fills for window in range(fill + 1, fill + 1 + lasts)}
    return sum(uses[window] for window in windows if window < len(uses))


def all_schedules(windows: int) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(range(windows), count) for count in range(windows + 1)))


@settings(max_examples=100, deadline=None)
@given(
    uses=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    lasts=st.integers(1, 4),
    price=st.floats(0, 12, allow_nan=False),
)
def test_for_one_context_and_price_no_schedule_is_better_also_none_whose_fills_overlap(
    uses: list[int], lasts: int, price: float
) -> None:
    most = max(served(uses, fills, lasts) - price * len(fills) for fills in all_schedules(len(uses)))
    assert best([0, *accumulate(uses)], price, lasts) == pytest.approx(most)


@settings(max_examples=40, deadline=None)
@given(
    uses=st.lists(st.lists(st.integers(0, 9), min_size=6, max_size=6), min_size=2, max_size=2),
    tokens=st.lists(st.integers(1, 9), min_size=2, max_size=2),
    budget=st.integers(0, 30),
    lasts=st.integers(1, 3),
)
def test_no_pair_of_schedules_within_the_budget_saves_more(
    uses: list[list[int]], tokens: list[int], budget: int, lasts: int
) -> None:
    clients = [client(dict(enumerate(of)), name=str(number)) for number, of in enumerate(uses)]
    small = fleet(clients, tokens, day_tokens=budget, lasts=lasts)
    schedules = all_schedules(6)
    most = max(
        tokens[0] * served(uses[0], one, lasts) + tokens[1] * served(uses[1], other, lasts)
        for one in schedules
        for other in schedules
        if tokens[0] * len(one) + tokens[1] * len(other) <= budget
    )
    assert Bound(clients, lasts).tokens(small) >= most


def random_fleet(seed: int, *, share: float) -> tuple[Bound, Fleet]:
    rng = random.Random(seed)
    clients = [
        client({w: rng.randrange(1, 50) for w in range(3 * DAY) if rng.random() < active}, days=3, name=str(active))
        for active in (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    tokens = [rng.randrange(10, 1000) for _ in clients]
    return Bound(clients, 24), fleet(clients, tokens, day_tokens=int(share * 6 * sum(tokens)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_no_planner_exceeds_it_and_one_that_knows_the_future_comes_close(seed: int, share: float) -> None:
    bound, many = random_fleet(seed, share=share)
    limit = bound.tokens(many)
    knowing = run(many, Clairvoyant(many)).saved_tokens
    online = run(many, ByValue(many, break_even=0.65)).saved_tokens
    assert 0.8 * limit < knowing <= limit
    assert 0 < online <= limit


def test_with_a_budget_for_everything_it_is_what_a_planner_without_a_budget_saves() -> None:
    bound, rich = random_fleet(7, share=10)
    assert bound.tokens(rich) == unlimited(rich).saved_tokens


def test_with_no_budget_nothing_can_be_saved() -> None:
    bound, poor = random_fleet(7, share=0)
    assert bound.tokens(poor) == 0


def test_a_smaller_budget_never_has_a_higher_bound() -> None:
    bounds = [random_fleet(3, share=share) for share in (0.05, 0.1, 0.2, 0.4, 0.8)]
    found = [bound.tokens(many) for bound, many in bounds]
    assert found == sorted(found)
