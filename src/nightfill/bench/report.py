"""A run's result: as one record for machines, as a table for people."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nightfill.bench.stats import (
    BOOTSTRAP_METHOD,
    PERCENTILE_METHOD,
    ArmSummary,
    Cost,
    Interval,
    cost,
    queries_to_break_even,
    ratio_of_means,
    summarise,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from nightfill.bench.machine import Machine
    from nightfill.bench.query import Sample

COLD: Final = "cold"
"""Name of the arm that the others are compared with."""
FILLED: Final = "filled"
_NOT_COLD: Final = 0.05
_NOT_FILLED: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Money per hour of the serving engine and of background work, and how long the background work took."""

    serving_per_hour: float
    background_per_hour: float = 0.0
    background_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What was run, so that it can be run again."""

    command: str
    url: str
    model: str
    context: str
    load: str
    max_tokens: int
    version: str
    commit: str
    at: str
    """ISO 8601, UTC."""
    machine: Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The arms of one run, summed up and compared with the cold one."""

    arms: Mapping[str, ArmSummary]
    ratios: Mapping[str, Interval]
    """How many times sooner than cold the first token came, by arm; only where both are known."""
    costs: Mapping[str, Cost] = field(default_factory=dict)
    break_even_queries: float | None = None
    notes: tuple[str, ...] = ()
    """What a reader must know before believing the figures."""

    @property
    def failed(self) -> int:
        """Queries that failed, over all arms."""
        return sum(arm.failed for arm in self.arms.values())


def compare(
    samples: Mapping[str, Sequence[Sample]],
    *,
    prices: Prices | None = None,
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Report:
    """Sum up each arm and compare it with the one named COLD, if there is one. `notes` come before our own."""
    arms = {name: summarise(of_arm) for name, of_arm in samples.items()}
    ttft = {name: [s.ttft_s for s in of_arm if s.ok and s.ttft_s is not None] for name, of_arm in samples.items()}
    rng = random.Random(seed)  # noqa: S311 - resampling, not secrets
    ratios = {
        name: ratio
        for name in arms
        if name != COLD and (ratio := ratio_of_means(ttft.get(COLD, ()), ttft[name], rng)) is not None
    }
    costs = _costs(arms, prices) if prices is not None else {}
    break_even = None
    if prices is not None and COLD in costs and FILLED in costs:
        break_even = queries_to_break_even(
            costs[COLD],
            costs[FILLED],
            background_per_hour=prices.background_per_hour,
            background_s=prices.background_s,
        )
    return Report(arms=arms, ratios=ratios, costs=costs, break_even_queries=break_even, notes=(*notes, *_notes(arms)))


def _costs(arms: Mapping[str, ArmSummary], prices: Prices) -> dict[str, Cost]:
    found = {}
    for name, arm in arms.items():
        price = cost(
            arm,
            serving_per_hour=prices.serving_per_hour,
            background_per_hour=prices.background_per_hour,
            background_s=0.0 if name == COLD else prices.background_s,
        )
        if price is not None:
            found[name] = price
    return found


def _notes(arms: Mapping[str, ArmSummary]) -> tuple[str, ...]:
    notes = []
    for name, arm in arms.items():
        if arm.failed:
            errors = "; ".join(f"{count} x {message}" for message, count in arm.errors.items())
            notes.append(f"{name}: {arm.failed} of {arm.queries} queries failed: {errors}")
        if arm.prompt_tokens_mean and arm.cached_tokens_mean is not None:
            reused = arm.cached_tokens_mean / arm.prompt_tokens_mean
            if name == COLD and reused > _NOT_COLD:
                notes.append(f"{name}: not wholly cold, the server reused {reused:.0%} of its prompts' tokens")
            if name != COLD and reused < _NOT_FILLED:
                notes.append(f"{name}: the server reused only {reused:.0%} of its prompts' tokens")
        if 0 < sum(arm.layers.values()) != max(arm.layers.values()):
            notes.append(f"{name}: served by several layers: {_layers(arm)}")
        if arm.ttft_s is not None and arm.ttft_s.n < 20:
            notes.append(f"{name}: p95 and p99 of {arm.ttft_s.n} queries are little more than their maximum")
    return tuple(notes)


def _layers(arm: ArmSummary) -> str:
    return ", ".join(f"{layer} {count}" for layer, count in arm.layers.items())


def _layer(arm: ArmSummary) -> str:
    """The layer that served all of the arm, or each with its count."""
    return next(iter(arm.layers), "-") if len(arm.layers) < 2 else _layers(arm)


def to_json(report: Report, setting: Setting) -> dict[str, Any]:
    """The report as one JSON object: seconds, tokens, and money in the currency of the prices."""
    record: dict[str, Any] = {"benchmark": "bench", **asdict(setting)}
    for name, arm in report.arms.items():
        record[name] = asdict(arm)
        record[f"{name}_ttft_s"] = arm.ttft_s.mean if arm.ttft_s is not None else None
        if name in report.ratios:
            record[f"{name}_speedup"] = asdict(report.ratios[name])
        if name in report.costs:
            record[f"{name}_cost"] = asdict(report.costs[name])
    return record | {
        "break_even_queries": report.break_even_queries,
        "failed": report.failed,
        "notes": list(report.notes),
        "percentile_method": PERCENTILE_METHOD,
        "interval_method": BOOTSTRAP_METHOD,
    }


def to_table(report: Report) -> Table:
    """The report as a table of at most 80 columns: a row for each arm, and below it what compares them."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="Time to first token",
        title_justify="left",
        caption="\n".join(_comparisons(report)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("arm")
    for heading in ("queries", "mean", "p50", "p95", "p99", "reused tokens", "sooner"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("layer")
    for name, arm in report.arms.items():
        spread = arm.ttft_s
        row = [name, f"{arm.queries - arm.failed}/{arm.queries}"]
        row += ["-"] * 4 if spread is None else [_seconds(s) for s in (spread.mean, spread.p50, spread.p95, spread.p99)]
        ratio = report.ratios.get(name)
        row += [_reused(arm), "-" if ratio is None else f"{ratio.estimate:.3g}x", _layer(arm)]
        table.add_row(*row)
    return table


def _comparisons(report: Report) -> list[str]:
    lines = [
        f"{name}: first token {ratio.estimate:.3g} times sooner than {COLD} "
        f"(95 % interval {ratio.low:.3g} to {ratio.high:.3g})"
        for name, ratio in report.ratios.items()
    ]
    lines += [
        f"{name}: a query costs {price.total_per_query:.3g}"
        + (f", {price.background_per_query:.3g} of it for the fill" if price.background_per_query else "")
        for name, price in report.costs.items()
    ]
    if report.break_even_queries is not None:
        lines.append(f"the fill has paid for itself after {report.break_even_queries:.1f} queries")
    return lines


def _seconds(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def _reused(arm: ArmSummary) -> str:
    if arm.cached_tokens_mean is None:
        return "not said"
    if arm.prompt_tokens_mean is None:
        return f"{arm.cached_tokens_mean:.0f}"
    return f"{arm.cached_tokens_mean:.0f}/{arm.prompt_tokens_mean:.0f}"
