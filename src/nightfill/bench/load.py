"""Driving a server: so many queries at a time, or so many a second."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from nightfill.bench.query import Query, Sample

    Ask = Callable[[Query, float], Awaitable[Sample]]
    """Ask one query that was due at the given time of `time.perf_counter`."""

MAX_IN_FLIGHT: Final = 256
"""Bound of an open loop: queries that are due while so many are under way wait, and their wait counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """`concurrency` askers; each asks its next question when it has its answer."""

    concurrency: int

    def __str__(self) -> str:
        return f"closed loop, {self.concurrency} at a time"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Queries that come as strangers come: a Poisson process, whether or not the server keeps up."""

    rate_per_s: float
    seed: int = 0

    def __str__(self) -> str:
        return f"open loop, Poisson, {self.rate_per_s:g} a second, seed {self.seed}"


Load = ClosedLoop | OpenLoop


def arrivals(count: int, *, rate_per_s: float, rng: random.Random) -> list[float]:
    """Arrival times of a Poisson process, in seconds from its start, ascending."""
    times, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(rate_per_s)
        times.append(now)
    return times


async def drive(
    ask: Ask, queries: Iterable[Query], load: Load, *, rng: random.Random, done: Callable[[Sample], None]
) -> list[Sample]:
    """Ask all queries under the load; their samples by index. `done` is called after each one.

    An exception of `ask` ends the run: it reports a server's failure in its sample, so what it raises is ours.
    """
    todo = list(queries)
    match load:
        case ClosedLoop(concurrency=concurrency):
            samples = await _closed(ask, todo, concurrency, done)
        case OpenLoop(rate_per_s=rate_per_s):
            samples = await _open(ask, todo, arrivals(len(todo), rate_per_s=rate_per_s, rng=rng), done)
    return sorted(samples, key=lambda sample: sample.index)


async def _closed(ask: Ask, todo: list[Query], concurrency: int, done: Callable[[Sample], None]) -> list[Sample]:
    samples: list[Sample] = []
    waiting = iter(todo)  # shared by the askers: each takes the next one, none is asked twice

    async def asker() -> None:
        for query in waiting:
            sample = await ask(query, time.perf_counter())
            samples.append(sample)
            done(sample)

    async with asyncio.TaskGroup() as tasks:
        for number in range(min(concurrency, len(todo))):
            tasks.create_task(asker(), name=f"bench-asker-{number}")
    return samples


async def _open(ask: Ask, todo: Sequence[Query], at_s: Sequence[float], done: Callable[[Sample], None]) -> list[Sample]:
    samples: list[Sample] = []
    room = asyncio.Semaphore(MAX_IN_FLIGHT)
    start_s = time.perf_counter()

    async def one(query: Query, due_s: float) -> None:
        try:
            sample = await ask(query, due_s)
        finally:
            room.release()
        samples.append(sample)
        done(sample)

    async with asyncio.TaskGroup() as tasks:
        for query, after_s in zip(todo, at_s, strict=True):
            due_s = start_s + after_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            await room.acquire()
            tasks.create_task(one(query, due_s), name=f"bench-query-{query.index}")
    return samples
