from __future__ import annotations

import pytest

from nightfill.sleep.slicing import SliceSizer

SIZER = SliceSizer(min_tokens=64, max_tokens=4096, max_s=2.0)


def known(tps: float, last: int = 4096) -> SliceSizer:
    return SliceSizer(min_tokens=64, max_tokens=4096, max_s=2.0, speed_tps=tps, last_tokens=last)


@pytest.mark.parametrize(
    ("sizer", "freezes", "ttft_s", "tokens"),
    [
        (SIZER, True, 0.0, 64),
        (known(1000), True, 0.2, 2000),
        (known(1000), False, 2.0, 200),
        (known(1000), False, 100.0, 2000),
        (known(10_000), False, 0.0, 500),
        (known(1000), False, 0.01, 64),
        (known(1e6), True, 0.0, 4096),
        (known(1e6, last=64), True, 0.0, 256),
        (known(1e6, last=0), True, 0.0, 256),
    ],
)
def test_slices_are_as_long_as_they_may_be(sizer: SliceSizer, freezes: bool, ttft_s: float, tokens: int) -> None:
    assert sizer.next_tokens(freezes=freezes, live_ttft_s=ttft_s) == tokens


def test_the_speed_follows_the_engine_as_it_slows_with_depth() -> None:
    sizer = SIZER
    for depth in range(0, 40_000, 1000):
        tps = 1000 / (1 + depth / 10_000)
        sizer = sizer.after(tokens=1000, seconds=1000 / tps)
    assert sizer.speed_tps == pytest.approx(tps, rel=0.05)


def test_a_slice_that_did_nothing_teaches_nothing() -> None:
    assert SIZER.after(tokens=0, seconds=1.0) is SIZER
    assert SIZER.after(tokens=10, seconds=0.0) is SIZER
