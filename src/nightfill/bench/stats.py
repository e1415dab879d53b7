"""Figures from samples: pure functions, so that tables can test them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

    from nightfill.bench.query import Sample

PERCENTILE_METHOD: Final = "linear interpolation between the closest ranks (Hyndman and Fan, type 7)"
BOOTSTRAP_METHOD: Final = "percentile bootstrap of the ratio of means, 2000 resamples, 95 %"
RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A distribution in a few figures, in the unit of its values."""

    n: int
    mean: float
    min: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm of a run: what its queries took."""

    queries: int
    failed: int
    ttft_s: Spread | None
    """None when no query ended well."""
    total_s: Spread | None
    prompt_tokens_mean: float | None
    output_tokens_mean: float | None
    cached_tokens_mean: float | None
    """None when the server did not say."""
    layers: Mapping[str, int]
    """How many replies each layer gave; empty for servers that do not say."""
    busy_s: float
    """Seconds in which at least one query was under way: the server's time that the arm took."""
    errors: Mapping[str, int]
    """Failures by message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Money per query, in the currency of the prices."""

    serving_per_query: float
    background_per_query: float
    total_per_query: float


def percentile(ordered: Sequence[float], q: float) -> float:
    """The `q`-th percentile (0 to 100) of values in ascending order, at least one; see PERCENTILE_METHOD."""
    position = (len(ordered) - 1) * q / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def spread(values: Iterable[float]) -> Spread | None:
    """The spread of the values; None when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Spread(
        n=len(ordered),
        mean=fmean(ordered),
        min=ordered[0],
        p50=percentile(ordered, 50),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


def summarise(samples: Sequence[Sample]) -> ArmSummary:
    """One arm's summary. Times and tokens are those of the queries that ended well; failures are counted apart."""
    good = [sample for sample in samples if sample.ok]
    return ArmSummary(
        queries=len(samples),
        failed=len(samples) - len(good),
        ttft_s=spread(sample.ttft_s for sample in good if sample.ttft_s is not None),
        total_s=spread(sample.total_s for sample in good),
        prompt_tokens_mean=_mean(sample.prompt_tokens for sample in good),
        output_tokens_mean=_mean(sample.output_tokens for sample in good),
        cached_tokens_mean=_mean(sample.cached_tokens for sample in good),
        layers=dict(Counter(sample.layer for sample in good if sample.layer)),
        busy_s=busy_seconds((sample.due_s, sample.due_s + sample.total_s) for sample in samples),
        errors=dict(Counter(sample.error for sample in samples if not sample.ok)),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (start, end) spans: overlapping queries share the time they overlap in."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def ratio_of_means(slow: Sequence[float], fast: Sequence[float], rng: random.Random) -> Interval | None:
    """How many times the mean of `slow` is that of `fast`; None when either is empty or `fast` has a mean of 0.

    The interval says what would change if other queries of the same kind had been drawn (see BOOTSTRAP_METHOD); it
    knows nothing of another day or another machine. With a single value on one side, that side does not vary.
    """
    if not slow or not fast or fmean(fast) <= 0:
        return None
    ratios = sorted(
        fmean(rng.choices(slow, k=len(slow))) / max(fmean(rng.choices(fast, k=len(fast))), 1e-12)
        for _ in range(RESAMPLES)
    )
    return Interval(estimate=fmean(slow) / fmean(fast), low=percentile(ratios, 2.5), high=percentile(ratios, 97.5))


def cost(
    summary: ArmSummary, *, serving_per_hour: float, background_per_hour: float = 0.0, background_s: float = 0.0
) -> Cost | None:
    """Cost per query that ended well: the server's busy time, and its share of the background work before it.

    None when no query ended well.
    """
    good = summary.queries - summary.failed
    if good == 0:
        return None
    serving = summary.busy_s * serving_per_hour / 3600 / good
    background = background_s * background_per_hour / 3600 / good
    return Cost(serving_per_query=serving, background_per_query=background, total_per_query=serving + background)


def queries_to_break_even(cold: Cost, filled: Cost, *, background_per_hour: float, background_s: float) -> float | None:
    """After so many queries the background work has paid for itself; None if it never does."""
    saved = cold.serving_per_query - filled.serving_per_query
    return background_s * background_per_hour / 3600 / saved if saved > 0 else None
