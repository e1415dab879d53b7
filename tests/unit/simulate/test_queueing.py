from __future__ import annotations

import pytest

from nightfill.simulate.queueing import Engines, ttfts


def test_who_finds_an_engine_free_waits_for_the_own_prefill_alone() -> None:
    assert ttfts([(0.0, 2.0), (5.0, 1.0)], 1) == [2.0, 1.0]


def test_who_comes_later_waits_for_those_before() -> None:
    assert ttfts([(0.0, 2.0), (1.0, 1.0), (1.0, 1.0)], 1) == [2.0, 2.0, 3.0]


def test_engines_share_one_queue() -> None:
    assert ttfts([(0.0, 10.0), (0.0, 1.0), (0.0, 1.0), (0.5, 1.0)], 2) == [10.0, 1.0, 2.0, 2.5]


def test_an_engine_loads_what_is_stored_and_prefills_the_rest() -> None:
    engines = Engines(prefill_tokens_per_s=1000, load_bytes_per_s=500)
    assert engines.busy_s(tokens=2000, load_bytes=250) == pytest.approx(2.5)
