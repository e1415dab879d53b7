from __future__ import annotations

from dataclasses import replace

import pytest

from nightfill.bench.switch import KEPT, NOT_KEPT, RELOAD, SLEEP, WARM, Asked, Step
from nightfill.bench.switch_figures import figures, phases_of


def asked(seconds: float, reused: int = 0) -> Asked:
    return Asked(seconds=seconds, prompt=1010, reused=reused)


STEP = Step(
    model="a",
    seconds=2.0,
    phases={"warm": 0.2, "load": 0.5, "prompt": 0.3, "rest": 0.1},
    first=asked(0.3),
    steady=(asked(0.2), asked(0.25), asked(0.3)),
    read_bytes=7,
)


def test_the_figures_say_how_often_sleep_is_quicker_and_what_is_reused_with_kv_kept_and_without() -> None:
    arms = {
        RELOAD: [replace(STEP, seconds=5.0)] * 2,
        SLEEP: [replace(STEP, first=asked(0.4))] * 2,
        WARM: [STEP] * 2,
        KEPT: [replace(STEP, first=asked(0.5, 1000)), replace(STEP, first=asked(0.5, 980))],
        NOT_KEPT: [replace(STEP, first=asked(9.0, 0))],
    }
    shown = figures(arms, context_tokens=1000)
    assert (shown["reload_total_s"], shown["sleep_total_s"], shown["reload_over_sleep"]) == (10.0, 4.0, 2.5)
    assert (shown["first_prompt_cold_s"], shown["first_prompt_warm_s"], shown["steady_prompt_s"]) == (0.4, 0.3, 0.25)
    assert shown["first_over_steady"] == pytest.approx(1.2)
    assert (shown["reused_tokens_after_wake"], shown["reused_tokens_not_kept"]) == ([1000, 980], [0])
    assert shown["reused_share"] == 0.98, "the worst wake counts"
    assert shown["arms"][WARM]["read_bytes"] == 14


def test_phases_are_summed_in_the_order_in_which_they_happen() -> None:
    sums = phases_of([STEP, replace(STEP, phases={"sleep": 0.1, "load": 0.25})])
    assert list(sums) == ["sleep", "load", "warm", "prompt", "rest"]
    assert sums["load"] == 0.75
