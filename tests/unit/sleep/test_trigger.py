from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.background import SETTINGS, WALL_S, FakeBoard, House, T, house, key_of
from fakes.fill_engine import FakeFillEngine
from fakes.virtual_time import now_s, virtual
from nightfill.cli.units import parse_duration
from nightfill.config import Duration, SleepSettings
from nightfill.errors import StateUnavailable
from nightfill.sleep.autoscale import PACE, pace_of, scale
from nightfill.sleep.trigger import CHECK_S, Go, Reason, Trigger, Wait, decide, idle_for_s
from nightfill.sleep.windows import windows_of
from nightfill.state.engines import EngineNote
from nightfill.state.jobs import ASKED, JobKind, JobState, QueueDepth
from nightfill.state.load import Load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NIGHT = ("0 2 * * *",)


def at_s(text: str) -> float:
    return datetime.fromisoformat(f"2026-06-01 {text}+00:00").timestamp()


def depth(due: int = 0, leased: int = 0, later: int = 0, tokens: int = 0) -> QueueDepth:
    return QueueDepth(due=due, later=later, leased=leased, tokens=tokens)


def decided(
    now: str, *, due: int = 0, idle: float = 0.0, awake: bool = False, asked: bool = False, **given: Any
) -> Any:
    settings = SleepSettings(**{"windows": NIGHT, **given})
    windows = windows_of(settings, duration=parse_duration)
    return decide(at_s(now), windows, due=due, idle_for_s=idle, awake=awake, asked=asked, settings=settings)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"now": "12:00", "windows": ()}, Reason.ALWAYS),
        ({"now": "02:00"}, Reason.WINDOW),
        ({"now": "06:00"}, None),
        ({"now": "12:00", "due": 49}, None),
        ({"now": "12:00", "due": 50}, Reason.DEPTH),
        ({"now": "03:00", "due": 50}, Reason.WINDOW),
        # Awake for the queue, a worker goes on until a fifth is left.
        ({"now": "12:00", "due": 11, "awake": True}, Reason.DEPTH),
        ({"now": "12:00", "due": 10, "awake": True}, None),
        ({"now": "12:00", "due": 1, "wake_at_queue_depth": 1}, Reason.DEPTH),
        ({"now": "12:00", "due": 0, "wake_at_queue_depth": 1, "awake": True}, None),
        ({"now": "12:00", "due": 10**6, "wake_at_queue_depth": 0, "awake": True}, None),
        ({"now": "12:00", "idle": 1e9}, None),
        ({"now": "12:00", "idle": 300, "wake_when_idle_s": Duration(300)}, Reason.IDLE),
        ({"now": "12:00", "idle": 299, "wake_when_idle_s": Duration(300)}, None),
        ({"now": "12:00", "asked": True}, Reason.ASKED),
    ],
)
def test_what_wakes_workers(given: dict[str, Any], reason: Reason | None) -> None:
    decision = decided(**given)
    assert (decision.reason if isinstance(decision, Go) else None) is reason


def test_a_decision_says_why() -> None:
    assert decided("03:00").why == "window `0 2 * * *` is open until 2026-06-01 06:00 UTC"
    assert decided("03:00").until_s == at_s("06:00")
    assert decided("07:00", due=12).why == "the next window opens at 2026-06-02 02:00 UTC; 12 of 50 jobs are due"
    assert decided("07:00", due=60).why == "60 jobs are due, 50 wake workers"
    berlin = decided("00:30", time_zone="Europe/Berlin")
    assert berlin.why == "window `0 2 * * *` is open until 2026-06-01 06:00 CEST"


def test_who_waits_looks_again_when_something_may_have_changed() -> None:
    assert decided("12:00").check_again_in_s == 5
    assert decided("01:59:58").check_again_in_s == 2
    assert decided("12:00", idle=297, wake_when_idle_s=Duration(300)).check_again_in_s == 3
    assert decided("01:59:59.9999").check_again_in_s > 0


def test_nobody_is_idle_while_a_request_is_in_flight() -> None:
    assert idle_for_s(Load(in_flight=1, idle_since_s=0.0, ttft_s=0.0), 100.0) == 0
    assert idle_for_s(Load(in_flight=0, idle_since_s=40.0, ttft_s=0.0), 100.0) == 60
    assert idle_for_s(Load(in_flight=0, idle_since_s=140.0, ttft_s=0.0), 100.0) == 0


class Queue:
    """The one method that a trigger needs."""

    def __init__(self) -> None:
        self.due = 0
        self.asked = 0
        self.fails = False

    async def depth(self, **_: object) -> QueueDepth:
        self.asked += 1
        if self.fails:
            raise StateUnavailable("gone")
        return depth(self.due)


def trigger(queue: Queue, board: FakeBoard, changes: list[Go | Wait], *, from_: str = "12:00", **given: Any) -> Trigger:
    settings = SleepSettings(**{"windows": NIGHT, **given})
    windows = windows_of(settings, duration=parse_duration)
    began_s = now_s()
    return Trigger(
        queue,  # type: ignore[arg-type]
        board,
        settings,
        windows,
        on_change=changes.append,
        clock=lambda: at_s(from_) + now_s() - began_s,
        steady=now_s,
    )


async def pass_(found: Trigger, seconds: float) -> None:
    """Ask all the time for so long."""
    until_s = now_s() + seconds
    while now_s() < until_s:
        await found.now()
        await asyncio.sleep(0.2)


@virtual
async def test_each_change_is_told_once() -> None:
    queue, board, changes = Queue(), FakeBoard(), list[Go | Wait]()
    found = trigger(queue, board, changes)
    await pass_(found, 60)
    queue.due = 50
    await pass_(found, 60)
    queue.due = 20
    await pass_(found, 60)
    queue.due = 10
    await pass_(found, 60)
    queue.due = 20
    await pass_(found, 60)
    assert [getattr(change, "reason", None) for change in changes] == [None, Reason.DEPTH, None]


@virtual
async def test_the_queue_is_asked_seldom_and_only_where_its_length_decides() -> None:
    queue, board = Queue(), FakeBoard()
    await pass_(trigger(queue, board, [], from_="02:30"), 600)
    assert queue.asked == 0
    await pass_(trigger(queue, board, [], windows=()), 600)
    assert queue.asked == 0
    await pass_(trigger(queue, board, [], from_="12:00"), 600)
    assert queue.asked <= 121


@virtual
async def test_a_window_that_ends_is_noticed_within_a_second_and_one_that_opens_at_once() -> None:
    queue, board = Queue(), FakeBoard()
    found = trigger(queue, board, [], from_="01:59:30")
    assert isinstance(await found.now(), Wait)
    await asyncio.sleep(29.9)
    assert isinstance(await found.now(), Wait)
    await asyncio.sleep(0.2)
    assert isinstance(await found.now(), Go)
    await asyncio.sleep(4 * 3600 - 0.2)
    assert isinstance(await found.now(), Go)
    await asyncio.sleep(CHECK_S + 0.2)
    assert isinstance(await found.now(), Wait)


@virtual
async def test_a_request_ends_what_idleness_began() -> None:
    queue, board, changes = Queue(), FakeBoard(), list[Go | Wait]()
    board.idle_since_s = now_s()
    found = trigger(queue, board, changes, wake_when_idle_s=Duration(300))
    await pass_(found, 301)
    board.enter()
    await asyncio.sleep(CHECK_S)
    assert isinstance(await found.now(), Wait)
    board.leave()
    await pass_(found, 299)
    assert isinstance(await found.now(), Wait)
    await pass_(found, 2)
    assert isinstance(await found.now(), Go)


@virtual
async def test_a_state_that_fails_is_told_and_asked_again() -> None:
    queue, board = Queue(), FakeBoard()
    queue.fails = True
    found = trigger(queue, board, [])
    for _ in range(2):
        with pytest.raises(StateUnavailable):
            await found.now()
    queue.fails = False
    queue.due = 60
    assert isinstance(await found.now(), Go)


# --- a worker that goes by it ---


@contextlib.asynccontextmanager
async def night_house(folder: Path, window: str, **given: Any) -> AsyncIterator[House]:
    """It is 22:30 UTC."""
    async with house(folder) as h:
        h.settings = msgspec.structs.replace(SETTINGS, windows=(window,), **given)
        h.windows = windows_of(h.settings, duration=parse_duration)
        assert f"{datetime.fromtimestamp(WALL_S + now_s(), UTC):%H:%M}" == "22:30"
        yield h


@virtual
async def test_a_worker_fills_when_its_window_opens_and_plans_before(tmp_path: Path) -> None:
    async with night_house(tmp_path, "40 22 * * *") as h, h.working():
        await h.put("x" * 3000)
        await asyncio.sleep(595)
        assert (h.log.computed, (await h.one_job()).state) == (0, JobState.QUEUED)
        await asyncio.sleep(30)
        assert (await h.one_job()).state is JobState.DONE


@virtual
async def test_a_fill_that_its_window_ends_goes_back_with_what_it_has(tmp_path: Path) -> None:
    async with night_house(tmp_path, "31 22 * * * for 1m") as h:
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, speed_tps=20.0)
        context = await h.put("x" * 3000)
        async with h.working():
            await asyncio.sleep(90)
            assert h.log.computed > 0
            await asyncio.sleep(32)
            job, computed = await h.one_job(), h.log.computed
            assert (job.state, job.failures, job.lost, job.worker) == (JobState.QUEUED, 0, 0, None)
            fill = await h.state.book.fill(key_of(context))
            assert fill is not None
            assert fill.stored_tokens == computed < 1300
            await asyncio.sleep(120)
            assert h.log.computed == computed


@virtual
async def test_what_somebody_asked_for_is_filled_at_any_hour_and_nothing_else_is(tmp_path: Path) -> None:
    async with night_house(tmp_path, "0 2 * * *") as h:
        asked = await h.put("x" * 3000, name="asked")
        await h.put("y" * 3000, name="other")
        async with h.working():
            await asyncio.sleep(30)
            assert h.log.computed == 0
            await h.state.jobs.enqueue(
                kind=JobKind.FILL, target=str(key_of(asked)), tenant=T, label="asked", priority=ASKED
            )
            await asyncio.sleep(60)
        states = {job.label: job.state for job in await h.state.jobs.jobs()}
        assert states == {"asked": JobState.DONE, "other": JobState.QUEUED}


@virtual
async def test_a_long_queue_wakes_a_worker_until_a_fifth_of_it_is_left(tmp_path: Path) -> None:
    async with night_house(tmp_path, "0 2 * * *", wake_at_queue_depth=10) as h, h.working():
        for n in range(9):
            await h.put(f"{n}" * 300, name=f"c{n}")
        await asyncio.sleep(60)
        assert h.log.computed == 0
        await h.put("9" * 300, name="c9")
        await asyncio.sleep(120)
        assert (await h.state.jobs.depth()).due == 2
        await asyncio.sleep(60)
        assert (await h.state.jobs.depth()).due == 2


@virtual
async def test_how_fast_a_worker_fills_is_written_down_for_autoscalers(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, speed_tps=100.0)
        await h.put("x" * 3000)
        async with h.working():
            await asyncio.sleep(60)
        assert 50 < pace_of(await h.state.engines.notes()) <= 105


# --- how many workers ---

WINDOW = Go(reason=Reason.WINDOW, why="", until_s=1000.0 + 3600)
ENDLESS = Go(reason=Reason.ALWAYS, why="")
CLOSED = Wait(why="", check_again_in_s=5)


@pytest.mark.parametrize(
    ("queue", "decision", "pace", "asked", "wished"),
    [
        (depth(), WINDOW, 100.0, 0, 0),
        (depth(later=5, tokens=10**9), WINDOW, 100.0, 0, 0),
        (depth(due=10, tokens=10**9), CLOSED, 100.0, 0, 0),
        (depth(due=10, tokens=10**9), WINDOW, 0.0, 0, 1),
        (depth(due=10), WINDOW, 100.0, 0, 1),
        (depth(due=10, tokens=360_000), WINDOW, 100.0, 0, 1),
        (depth(due=10, tokens=360_001), WINDOW, 100.0, 0, 2),
        (depth(due=9, leased=1, tokens=10**9), WINDOW, 100.0, 0, 8),
        (depth(due=2, leased=1, tokens=10**9), WINDOW, 100.0, 0, 3),
        (depth(due=10, tokens=2 * 1_440_000), ENDLESS, 100.0, 0, 2),
        (depth(due=10, tokens=10**9), CLOSED, 100.0, 2, 2),
        (depth(due=10, tokens=10**9), CLOSED, 100.0, 10, 8),
        (depth(due=10), ENDLESS, 0.0, 3, 3),
    ],
)
def test_how_many_workers_are_wished_for(
    queue: QueueDepth, decision: Go | Wait, pace: float, asked: int, wished: int
) -> None:
    found = scale(queue, decision, pace=pace, asked=asked, now_s=1000.0, horizon_s=4 * 3600.0, max_workers=8)
    assert found.wished_workers == wished
    assert found.allowed == (isinstance(decision, Go) or wished > 0)


def test_at_the_end_of_a_window_the_wish_stays_within_reason() -> None:
    found = scale(
        depth(due=100, tokens=6_000), WINDOW, pace=100.0, asked=0, now_s=4599.9, horizon_s=1.0, max_workers=50
    )
    assert found.wished_workers == 1


def test_the_reason_is_that_of_the_decision_or_that_somebody_asked() -> None:
    given: Any = {"pace": 0.0, "now_s": 0.0, "horizon_s": 1.0, "max_workers": 8}
    assert scale(depth(due=1), ENDLESS, asked=0, **given).reason == "always"
    assert scale(depth(due=1), CLOSED, asked=1, **given).reason == "asked"
    assert scale(depth(due=1), CLOSED, asked=0, **given).reason == "wait"


def test_the_pace_is_the_mean_of_what_was_measured() -> None:
    bodies: list[dict[str, str | int | bool]] = [{PACE: 100}, {PACE: 300}, {PACE: 0}, {"engine": "x"}]
    assert pace_of([EngineNote(name=str(n), body=body, seen_at_s=0.0) for n, body in enumerate(bodies)]) == 200
    assert pace_of([]) == 0
