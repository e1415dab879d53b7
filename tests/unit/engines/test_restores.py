from __future__ import annotations

import pytest

from nightfill.engines.engine import Weighed
from nightfill.engines.restores import LEAST_TOKENS, Restores
from nightfill.kv.worth import LOAD_ANYWAY_AFTER

MB = 1_000_000


def known(*, always: bool = False, tokens_per_s: int = 1000) -> Restores:
    """100 MB and `tokens_per_s` in a second."""
    restores = Restores(always=always)
    restores.loaded(nbytes=100 * MB, seconds=1.0)
    restores.computed(tokens=tokens_per_s, seconds=1.0)
    return restores


def test_what_nobody_knows_is_loaded() -> None:
    restores = Restores(always=False)
    assert restores.weigh(load_bytes=MB, missing_tokens=1) == Weighed(load=True, restore_s=None, recompute_s=None)


@pytest.mark.parametrize(
    ("load_bytes", "missing_tokens", "loads"), [(100 * MB, 2000, True), (100 * MB, 999, False), (MB, 11, True)]
)
def test_the_quicker_way_is_taken(load_bytes: int, missing_tokens: int, loads: bool) -> None:
    weighed = known().weigh(load_bytes=load_bytes, missing_tokens=missing_tokens)
    assert weighed.load is loads
    assert weighed.restore_s == pytest.approx(load_bytes / (100 * MB))
    assert weighed.recompute_s == pytest.approx(missing_tokens / 1000)


def test_always_means_always_and_the_estimates_are_told_all_the_same() -> None:
    weighed = known(always=True).weigh(load_bytes=100 * MB, missing_tokens=10)
    assert (weighed.load, weighed.restore_s) == (True, 1.0)
    assert weighed.recompute_s == pytest.approx(0.01)


def test_after_many_that_were_computed_one_is_loaded_so_that_a_better_rate_is_noticed() -> None:
    restores = known()

    def loads() -> bool:
        return restores.weigh(load_bytes=100 * MB, missing_tokens=500).load

    assert [loads() for _ in range(LOAD_ANYWAY_AFTER)] == [False] * LOAD_ANYWAY_AFTER
    assert loads()
    assert not loads(), "it was no better"
    for _ in range(20):
        restores.loaded(nbytes=100 * MB, seconds=0.01)
    assert loads()


def test_short_prompts_say_nothing_of_prefill() -> None:
    restores = known()
    before = restores.weigh(load_bytes=MB, missing_tokens=1000).recompute_s
    restores.computed(tokens=LEAST_TOKENS - 1, seconds=60)
    restores.computed(tokens=0, seconds=0)
    assert restores.weigh(load_bytes=MB, missing_tokens=1000).recompute_s == before


def test_a_reply_is_taken_for_lost_until_replies_have_come_back_as_they_were() -> None:
    restores = known()
    assert restores.lost(200) == 200
    for _ in range(10):
        restores.came_back(kept=200, reply_tokens=200)
    assert restores.lost(200) < 10
    restores.came_back(kept=-3, reply_tokens=200)
    assert restores.lost(200) > 50


def test_nothing_is_loaded_where_nothing_is_missing() -> None:
    assert not Restores(always=False).weigh(load_bytes=MB, missing_tokens=0).load
    assert not known().weigh(load_bytes=1, missing_tokens=0).load
