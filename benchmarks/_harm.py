"""What `harm.py` does on either engine: live load in segments, with background fills and without, and its figures."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nightfill.bench import percentile
from nightfill.bench.load import arrivals
from nightfill.bench.query import Query
from nightfill.bench.stats import busy_seconds
from nightfill.contexts import DEFAULT_TENANT, Form, Text, fingerprint_of
from nightfill.contexts.context import TextSource
from nightfill.contexts.names import parse_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from nightfill.bench.client import Client
    from nightfill.bench.query import Sample
    from nightfill.state.sqlite import SqliteState

WORDS: Final = ("import", "return", "value", "index", "count", "lambda", "yield", "class", "raise", "while", "print")
LIVE_SHARE: Final = 0.5
RESAMPLES: Final = 1000


@dataclass(slots=True)
class Arm:
    """What segments of one kind showed; one list of `ttft_s` per segment."""

    ttft_s: list[list[float]] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)
    """Of each query the mean time between two tokens of its answer."""
    busy_s: float = 0.0
    wall_s: float = 0.0
    tokens: int = 0
    """That fills computed."""

    @property
    def all_s(self) -> list[float]:
        return [value for segment in self.ttft_s for value in segment]

    @property
    def idle_share(self) -> float:
        return 1.0 - self.busy_s / self.wall_s

    @property
    def fill_tps(self) -> float:
        return self.tokens / self.wall_s

    def p(self, q: float) -> float:
        return percentile(sorted(self.all_s), q)


class Bench(ABC):
    """A server under live load, its background work under our thumb."""

    def __init__(self, client: Client, state: SqliteState, *, prompt_tokens: int) -> None:
        self._client = client
        self._state = state
        self._rng = random.Random(7)
        self._prompt_tokens = prompt_tokens

    @abstractmethod
    def without_fill(self) -> AbstractAsyncContextManager[None]:
        """Background work stopped where it stands."""

    @abstractmethod
    async def filled_tokens(self) -> int:
        """Tokens that fills have reached by now."""

    async def put_contexts(self, count: int, tokens: int) -> None:
        """More work than the run can do."""
        for n in range(count):
            content = Text(words(self._rng, tokens))
            await self._state.book.put(
                tenant=DEFAULT_TENANT,
                name=parse_name(f"bench-{n}"),
                source=TextSource(),
                content=content,
                fingerprint=fingerprint_of(content),
                forms=[Form.CHAT],
            )

    async def serve_alone_s(self) -> float:
        """Mean time of one live query on an idle machine, from sending to the end."""
        async with self.without_fill():
            for _ in range(2):
                await self._ask(0)
            return sum([(await self._ask(n)).total_s for n in range(8)]) / 8

    async def _ask(self, index: int) -> Sample:
        query = Query(index=index, question=words(self._rng, self._prompt_tokens), cold=False)
        sample = await self._client.ask(query, time.perf_counter())
        if sample.error or sample.ttft_s is None:
            raise RuntimeError(sample.error or "no token")
        return sample

    async def segment(self, times: Sequence[float], length_s: float, arm: Arm) -> None:
        """Live load for `length_s` seconds."""
        began_s, before = time.perf_counter(), await self.filled_tokens()
        spans: list[tuple[float, float]] = []
        ttft_s: list[float] = []

        async def one(at_s: float, index: int) -> None:
            await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
            sent_s = time.perf_counter()
            sample = await self._ask(index)
            assert sample.ttft_s is not None
            ttft_s.append(sample.ttft_s)
            if (output_tokens := sample.output_tokens or 0) > 1:
                arm.gap_s.append((sample.total_s - sample.ttft_s) / (output_tokens - 1))
            spans.append((sent_s, time.perf_counter()))

        async with asyncio.TaskGroup() as tasks:
            for index, at_s in enumerate(times):
                tasks.create_task(one(at_s, index))
            tasks.create_task(asyncio.sleep(length_s))
        if ttft_s:
            arm.ttft_s.append(ttft_s)
        arm.wall_s += time.perf_counter() - began_s
        arm.busy_s += busy_seconds(spans)
        arm.tokens += await self.filled_tokens() - before


async def measure(run: Bench, *, pairs: int, segment_s: float) -> dict[str, Any]:
    """Alone and with fills, interleaved; and fills without live load."""
    alone, shared, idle = Arm(), Arm(), Arm()
    serve_s = await run.serve_alone_s()
    rate = LIVE_SHARE / serve_s
    say(f"  one query takes {serve_s:.3f} s, so {rate:.2f} a second")
    for pair in range(pairs):
        drawn = arrivals(int(4 * rate * segment_s) + 1, rate_per_s=rate, rng=random.Random(pair))
        times = [t for t in drawn if t < segment_s]
        await run.segment([], segment_s / 3, idle)
        for with_fill in (pair % 2 == 0, pair % 2 == 1):
            if with_fill:
                await run.segment(times, segment_s, shared)
            else:
                async with run.without_fill():
                    await run.segment(times, segment_s, alone)
        say(
            f"  pair {pair + 1}/{pairs}: p50 {alone.p(50):.3f} and {shared.p(50):.3f} s, p99 {alone.p(99):.3f} and "
            f"{shared.p(99):.3f} s, fill {shared.fill_tps:.0f} of {idle.fill_tps:.0f} tokens/s"
        )
    return figures(alone, shared, idle)


def figures(alone: Arm, shared: Arm, idle: Arm) -> dict[str, Any]:
    """Of one point. Intervals: 95 % of a percentile bootstrap over queries; `_pairs`: least and most of all pairs."""
    by_pair = [
        percentile(sorted(with_fill), 50) / percentile(sorted(without), 50)
        for without, with_fill in zip(alone.ttft_s, shared.ttft_s, strict=True)
    ]
    return {
        "queries": len(shared.all_s),
        **{f"live_p{q}_alone_s": alone.p(q) for q in (50, 95, 99)},
        **{f"live_p{q}_with_fill_s": shared.p(q) for q in (50, 95, 99)},
        **{f"harm_p{q}": shared.p(q) / alone.p(q) for q in (50, 95, 99)},
        **{f"harm_p{q}_interval": interval(shared.all_s, alone.all_s, q) for q in (50, 95, 99)},
        "harm_p50_pairs": [min(by_pair), max(by_pair)],
        "harm_gap_p50": _ratio(shared.gap_s, alone.gap_s, 50),
        "harm_gap_p99": _ratio(shared.gap_s, alone.gap_s, 99),
        "fill_tps_alone": idle.fill_tps,
        "fill_tps_shared": shared.fill_tps,
        "idle_share": alone.idle_share,
        "fill_share_of_idle": shared.fill_tps / (idle.fill_tps * alone.idle_share),
    }


def interval(numerator: Sequence[float], denominator: Sequence[float], q: float) -> list[float]:
    """Of a ratio of two percentiles."""
    rng = random.Random(11)
    drawn = sorted(
        _ratio(rng.choices(numerator, k=len(numerator)), rng.choices(denominator, k=len(denominator)), q)
        for _ in range(RESAMPLES)
    )
    return [percentile(drawn, 2.5), percentile(drawn, 97.5)]


def _ratio(numerator: Sequence[float], denominator: Sequence[float], q: float) -> float:
    return percentile(sorted(numerator), q) / percentile(sorted(denominator), q)


def words(rng: random.Random, count: int) -> str:
    """Text of nearly `count` tokens that no other text begins with."""
    return f"{rng.getrandbits(64):016x} " + " ".join(rng.choice(WORDS) for _ in range(count))


def table(points: list[dict[str, Any]]) -> str:
    """The curve as text."""
    head = (
        f"{'slice':<9} {'stopped by':<20} p50 alone/with    p99 alone/with    harm p50   p95   p99    gap"
        "   fill/s alone  shared  of idle"
    )
    return "\n".join([head, *map(_row, points)])


def _row(p: dict[str, Any]) -> str:
    return (
        f"{p['slice_tokens'] or 'adaptive':<9} {p['stopped_by']:<20}"
        f" {p['live_p50_alone_s']:.3f} / {p['live_p50_with_fill_s']:.3f} s"
        f" {p['live_p99_alone_s']:.3f} / {p['live_p99_with_fill_s']:.3f} s"
        f" {p['harm_p50']:9.2f} {p['harm_p95']:5.2f} {p['harm_p99']:5.2f} {p['harm_gap_p50']:6.2f}"
        f" {p['fill_tps_alone']:14.0f} {p['fill_tps_shared']:7.0f} {p['fill_share_of_idle']:7.0%}"
    )


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)
