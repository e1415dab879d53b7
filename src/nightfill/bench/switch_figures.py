"""What a run of `bench.switch` comes to. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from nightfill.bench.switch import KEPT, NOT_KEPT, PROMPT, RELOAD, REST, SLEEP, WARM

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nightfill.bench.switch import Step

PHASES: Final = ("stop", "keep", "sleep", "process", "load", "warm", PROMPT, REST)


def figures(arms: Mapping[str, Sequence[Step]], *, context_tokens: int) -> dict[str, Any]:
    """What came of it. `..._total_s` are sums over an arm's steps, prompts medians."""
    reload_s, warm_s = (sum(step.seconds for step in arms[arm]) for arm in (RELOAD, WARM))
    first_s = _median(step.first.seconds for step in arms[WARM])
    steady_s = _median(asked.seconds for step in arms[WARM] for asked in step.steady)
    return {
        "reload_total_s": reload_s,
        "sleep_total_s": warm_s,
        "sleep_total_of": WARM,
        "reload_over_sleep": reload_s / warm_s,
        "kept_total_s": sum(step.seconds for step in arms[KEPT]),
        "first_prompt_cold_s": _median(step.first.seconds for step in arms[SLEEP]),
        "first_prompt_warm_s": first_s,
        "steady_prompt_s": steady_s,
        "first_over_steady": first_s / steady_s,
        "context_tokens": context_tokens,
        "reused_tokens_after_wake": [step.first.reused for step in arms[KEPT]],
        "reused_tokens_not_kept": [step.first.reused for step in arms[NOT_KEPT]],
        "reused_share": min(step.first.reused for step in arms[KEPT]) / context_tokens,
        "first_prompt_kept_s": _median(step.first.seconds for step in arms[KEPT]),
        "first_prompt_not_kept_s": _median(step.first.seconds for step in arms[NOT_KEPT]),
        "arms": {arm: _arm(steps) for arm, steps in arms.items()},
    }


def _arm(steps: Sequence[Step]) -> dict[str, Any]:
    return {
        "total_s": sum(step.seconds for step in steps),
        "switches": len(steps),
        "switch_s": [step.seconds for step in steps],
        "first_prompt_s": _median(step.first.seconds for step in steps),
        "steady_prompt_s": _median(asked.seconds for step in steps for asked in step.steady),
        "phases_s": phases_of(steps),
        "read_bytes": sum(step.read_bytes for step in steps),
    }


def phases_of(steps: Sequence[Step]) -> dict[str, float]:
    """Seconds of all steps together, by phase, in order."""
    sums: dict[str, float] = defaultdict(float)
    for step in steps:
        for phase, seconds in step.phases.items():
            sums[phase] += seconds
    return {phase: sums[phase] for phase in PHASES if phase in sums}


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)
