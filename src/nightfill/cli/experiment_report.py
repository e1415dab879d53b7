"""How the arms of an experiment compare: figures from what the server kept of each. Pure."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any, Final

from nightfill.bench.stats import BOOTSTRAP_METHOD, ratio_of_means

_LABELS: Final = {
    "ttft_s": "time to first token",
    "inter_token_s": "time per token",
    "tokens_per_s": "tokens per second",
    "compute_s": "engine seconds per request",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "tokens of the answer",
}
_SECONDS: Final = ("ttft_s", "inter_token_s", "compute_s")
_TIMES: Final = {"ttft_s": "first token", "inter_token_s": "per token"}


def compared(found: dict[str, Any]) -> dict[str, Any]:
    """What the server said of one experiment, without the values, and with `ratios`: the mean of arm b by that of arm
    a, and its interval (see `method`). Always the same for the same values.
    """
    a, b = (found["arms"][arm]["measures"] for arm in "ab")
    ratios = {}
    for name in _LABELS:
        if name in a and name in b:
            rng = random.Random(0)  # noqa: S311 - draws samples
            ratio = ratio_of_means(b[name]["values"], a[name]["values"], rng)
            if ratio is not None:
                ratios[name] = asdict(ratio)
    arms = {
        arm: {
            **view,
            "measures": {
                name: {key: value for key, value in measure.items() if key != "values"}
                for name, measure in view["measures"].items()
            },
        }
        for arm, view in found["arms"].items()
    }
    return {**found, "arms": arms, "ratios": ratios, "method": BOOTSTRAP_METHOD}


def table_of(report: dict[str, Any]) -> list[list[object]]:
    """Rows for people: what, arm a, arm b, ratio, interval."""
    a, b = report["arms"]["a"], report["arms"]["b"]
    rows: list[list[object]] = [
        [label, str(a[key]), str(b[key]), "", ""] for key, label in (("requests", "requests"), ("failures", "failed"))
    ]
    if b["acceptance"] is not None or a["acceptance"] is not None:
        rows.append(["guessed tokens taken", _share(a["acceptance"]), _share(b["acceptance"]), "", ""])
    for name, label in _LABELS.items():
        here, there = a["measures"].get(name), b["measures"].get(name)
        if here is None and there is None:
            continue
        ratio = report["ratios"].get(name)
        rows.append(
            [
                label,
                _figure(name, here),
                _figure(name, there),
                "" if ratio is None else f"{ratio['estimate']:.2f}",
                "" if ratio is None else f"{ratio['low']:.2f} - {ratio['high']:.2f}",
            ]
        )
    return rows


def times_of(found: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds to draw, by what they are of."""
    times = {
        f"arm {arm}: {label}": [value for value in measure["values"] if value > 0]
        for name, label in _TIMES.items()
        for arm in "ab"
        if (measure := found["arms"][arm]["measures"].get(name)) is not None
    }
    return {label: values for label, values in times.items() if values}


def _figure(name: str, measure: dict[str, Any] | None) -> str:
    if measure is None:
        return "-"
    mean = measure["mean"]
    return f"{1000 * mean:.4g} ms" if name in _SECONDS else f"{mean:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
