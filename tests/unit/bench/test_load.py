import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import pytest

from nightfill.bench import load
from nightfill.bench.load import ClosedLoop, OpenLoop, arrivals, drive
from nightfill.bench.query import Query, Sample, queries

TWELVE = list(queries(["why?"], count=12, cold=False))


def taken(query: Query, due_s: float) -> Sample:
    return Sample(index=query.index, due_s=due_s, ttft_s=0.0, total_s=0.0)


def counting(most: list[int]) -> Callable[[Query, float], Awaitable[Sample]]:
    now = 0

    async def ask(query: Query, due_s: float) -> Sample:
        nonlocal now
        now += 1
        most.append(now)
        for _ in range(5):
            await asyncio.sleep(0)
        now -= 1
        return taken(query, due_s)

    return ask


@pytest.mark.parametrize(("concurrency", "expected"), [(1, 1), (3, 3), (50, 12)])
async def test_a_closed_loop_keeps_so_many_queries_under_way_and_no_more(concurrency: int, expected: int) -> None:
    most: list[int] = []
    samples = await drive(
        counting(most), TWELVE, ClosedLoop(concurrency=concurrency), rng=random.Random(0), done=lambda _: None
    )
    assert max(most) == expected
    assert [sample.index for sample in samples] == list(range(12))


async def test_progress_is_told_of_each_query_once() -> None:
    told: list[int] = []
    await drive(
        counting([]), TWELVE, ClosedLoop(concurrency=4), rng=random.Random(0), done=lambda s: told.append(s.index)
    )
    assert sorted(told) == list(range(12))


def test_arrivals_have_the_rate_asked_for_and_the_spread_of_a_poisson_process() -> None:
    times = arrivals(20_000, rate_per_s=50.0, rng=random.Random(1))
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.03)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.05)
    assert times == sorted(times)
    assert times == arrivals(20_000, rate_per_s=50.0, rng=random.Random(1))


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    everybody_is_here = asyncio.Barrier(12)

    async def ask(query: Query, due_s: float) -> Sample:
        await everybody_is_here.wait()  # only passes when all twelve are under way
        return taken(query, due_s)

    samples = await asyncio.wait_for(
        drive(ask, TWELVE, OpenLoop(rate_per_s=10_000), rng=random.Random(0), done=lambda _: None), 10
    )
    assert len(samples) == 12


async def test_a_query_that_had_to_wait_for_room_is_timed_from_when_it_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MAX_IN_FLIGHT", 1)
    lateness: list[float] = []
    most: list[int] = []
    count = counting(most)

    async def ask(query: Query, due_s: float) -> Sample:
        lateness.append(time.perf_counter() - due_s)
        return await count(query, due_s)

    await drive(ask, TWELVE, OpenLoop(rate_per_s=1e9), rng=random.Random(0), done=lambda _: None)
    assert max(most) == 1
    assert lateness[-1] > lateness[0] > 0  # all were due at once: each waits for those before it


@pytest.mark.parametrize("how", [ClosedLoop(concurrency=2), OpenLoop(rate_per_s=10_000)])
async def test_a_fault_of_ours_ends_the_run_instead_of_passing_as_a_slow_server(how: load.Load) -> None:
    async def ask(query: Query, due_s: float) -> Sample:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        await drive(ask, TWELVE, how, rng=random.Random(0), done=lambda _: None)
    assert caught.group_contains(ZeroDivisionError)


def test_a_load_says_what_it_is() -> None:
    assert str(ClosedLoop(concurrency=3)) == "closed loop, 3 at a time"
    assert str(OpenLoop(rate_per_s=2.5, seed=4)) == "open loop, Poisson, 2.5 a second, seed 4"
