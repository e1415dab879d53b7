from __future__ import annotations

import math

import pytest

from fakes.fleets import client, fleet
from nightfill.simulate.latency import Latency, mean_wait_s


def test_what_is_filled_is_loaded_and_the_rest_is_computed() -> None:
    many = fleet([client({0: 3, 1: 6, 2: 1})], [200], day_tokens=0, engines=10_000)
    found = Latency(many).of([[(1, 1)]])
    assert [found.p50, found.p95] == pytest.approx([0.2, 2.0])
    assert found.mean == pytest.approx(0.6 * 0.2 + 0.4 * 2.0)


def test_fills_shorten_the_queue_of_others_too() -> None:
    many = fleet([client({5: 250}, name="a"), client({5: 30}, name="b")], [200, 200], day_tokens=0, engines=1)
    cold, filled = Latency(many).of([[], []]), Latency(many).of([[(5, 5)], []])
    assert cold.p99 > 10
    assert filled.p99 < 2.5


def test_one_engine_waits_as_the_formula_of_pollaczek_and_khinchine_says() -> None:
    requests, service_s = 150, 2.0
    load = requests * service_s / 600
    found = mean_wait_s(requests, requests * service_s, requests * service_s**2, 1)
    assert found == pytest.approx(load * service_s / (2 * (1 - load)))


def test_more_engines_wait_less_at_the_same_load() -> None:
    waits = [mean_wait_s(150 * n, 450 * n, 1350 * n, n) for n in (1, 2, 10, 100, 1000)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] < 1e-4


def test_more_work_than_there_is_time_for_piles_up() -> None:
    assert mean_wait_s(600, 1200.0, 2400.0, 1) == pytest.approx(302)
    assert math.isfinite(mean_wait_s(10**6, 10**9, 10**12, 1))
