from __future__ import annotations

import asyncio

import pytest

from fakes.virtual_time import now_s, virtual
from nightfill.engines.lifecycle.waiting import Line
from nightfill.errors import EngineTimeout, EngineUnavailable, QueueFull


class Door:
    """A line, and who came through it."""

    def __init__(self, *, max_waiting: int = 10) -> None:
        self.line = Line(engine="m", max_waiting=max_waiting, max_wait_s=30, clock=now_s, on_lost=self.lose)
        self.lost = 0
        self.through: list[str] = []

    def lose(self) -> None:
        self.lost += 1

    def wait(self, name: str) -> asyncio.Task[None]:
        async def wait() -> None:
            await self.line.wait()
            self.through.append(name)

        return asyncio.create_task(wait())

    def follow(self, name: str) -> asyncio.Task[None]:
        async def follow() -> None:
            await self.line.follow()
            self.through.append(name)

        return asyncio.create_task(follow())


@virtual
async def test_who_comes_first_gets_in_first() -> None:
    door = Door()
    tasks = [door.wait(name) for name in "abc"]
    await asyncio.sleep(1)
    assert len(door.line) == 3
    assert door.line.oldest_s == pytest.approx(now_s() - 1)
    assert door.line.release() == 3
    assert (len(door.line), door.line.oldest_s, door.line.resuming, door.through) == (0, None, True, [])
    await asyncio.gather(*tasks)
    assert (door.through, door.line.resuming, door.lost) == (["a", "b", "c"], False, 0)


@virtual
async def test_who_follows_runs_behind_all_who_were_let_through() -> None:
    door = Door()
    tasks = [door.wait("a"), door.wait("b")]
    await asyncio.sleep(0)
    door.line.release()
    tasks += [door.follow("c"), door.follow("d")]
    await asyncio.gather(*tasks)
    assert door.through == ["a", "b", "c", "d"]


@virtual
async def test_who_leaves_is_not_let_through() -> None:
    door = Door()
    tasks = [door.wait(name) for name in "abc"]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert door.line.release() == 2, "it was cancelled in this very round"
    await asyncio.wait(tasks)
    assert (door.through, door.lost, tasks[0].cancelled()) == (["b", "c"], 0, True)


@virtual
async def test_who_is_cancelled_after_its_turn_came_gives_it_back() -> None:
    door = Door()
    tasks = [door.wait("a"), door.wait("b")]
    await asyncio.sleep(0)
    door.line.release()
    tasks[0].cancel()
    followed = door.follow("c")
    await asyncio.sleep(0)
    followed.cancel()
    await asyncio.wait([*tasks, followed])
    assert (door.through, door.lost, door.line.resuming) == (["b"], 2, False)


@virtual
async def test_everybody_has_a_deadline_of_its_own() -> None:
    door = Door()
    first = door.wait("a")
    await asyncio.sleep(10)
    second = door.wait("b")
    await asyncio.sleep(20.001)
    assert (first.done(), second.done(), len(door.line)) == (True, False, 1)
    with pytest.raises(EngineTimeout, match="engine m: did not wake within 30 s"):
        await first
    door.line.release()
    await second


@virtual
async def test_the_line_is_bounded() -> None:
    door = Door(max_waiting=1)
    waiting = door.wait("a")
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match=r"1 requests wait for m to wake \(lifecycle\.max_waiting\)"):
        await door.line.wait()
    door.line.release()
    await waiting


@virtual
async def test_a_failure_answers_everybody_with_an_error_of_their_own() -> None:
    door = Door()
    tasks = [door.wait("a"), door.wait("b"), door.wait("c")]
    await asyncio.sleep(0)
    door.line.fail(lambda: EngineUnavailable("no", engine="m"))
    tasks[2].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [EngineUnavailable, EngineUnavailable, asyncio.CancelledError]
    assert answers[0] is not answers[1]
    assert (door.lost, len(door.line)) == (0, 0)
