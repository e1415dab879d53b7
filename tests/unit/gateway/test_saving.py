from __future__ import annotations

import pytest

from nightfill.gateway.saving import Rates


def test_what_was_never_measured_saves_nothing() -> None:
    assert Rates().seconds("m", prompt=1000, output=100) == 0


def test_prompt_and_answer_have_rates_of_their_own_by_model() -> None:
    rates = Rates()
    rates.note("m", computed=100, prefill_s=1.0, output=10, decode_s=2.0)
    assert rates.seconds("m", prompt=50, output=5) == pytest.approx(0.5 + 1.0)
    assert rates.seconds("other", prompt=50, output=5) == 0


def test_rates_follow_slowly_what_is_measured() -> None:
    rates = Rates()
    rates.note("m", computed=100, prefill_s=1.0, output=10, decode_s=1.0)
    rates.note("m", computed=100, prefill_s=2.0, output=10, decode_s=1.0)
    assert rates.seconds("m", prompt=100, output=0) == pytest.approx(1.1)


@pytest.mark.parametrize(("computed", "prefill_s"), [(3, 5.0), (100, 0.0), (100, -0.5), (-4, 1.0)])
def test_what_says_nothing_of_a_rate_is_left_aside(computed: int, prefill_s: float) -> None:
    rates = Rates()
    rates.note("m", computed=computed, prefill_s=prefill_s, output=0, decode_s=1.0)
    assert rates.seconds("m", prompt=100, output=100) == 0
