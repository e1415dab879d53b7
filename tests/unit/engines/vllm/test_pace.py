from __future__ import annotations

from nightfill.engines.vllm.pace import LEAST_TOKENS, PrefillSteps


def test_a_step_that_computed_much_of_a_prompt_is_timed() -> None:
    steps = PrefillSteps()
    steps.begins(2048, 10.0)
    assert steps.ends(12.0) == (2048, 2.0)


def test_each_step_counts_once() -> None:
    steps = PrefillSteps()
    steps.begins(2048, 10.0)
    steps.ends(12.0)
    assert steps.ends(13.0) == (0, 0.0)


def test_steps_that_decode_say_nothing() -> None:
    steps = PrefillSteps()
    steps.begins(LEAST_TOKENS - 1, 10.0)
    assert steps.ends(12.0) == (0, 0.0)


def test_a_step_is_passed_over_when_the_next_one_begins_before_it_ended() -> None:
    steps = PrefillSteps()
    steps.begins(2048, 10.0)
    steps.begins(1, 11.0)
    assert steps.ends(12.0) == (0, 0.0)


def test_a_clock_that_stands_still_says_nothing() -> None:
    steps = PrefillSteps()
    steps.begins(2048, 10.0)
    assert steps.ends(10.0) == (0, 0.0)
