from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fakes.virtual_time import now_s, virtual
from nightfill.state.bounded import within


class Work:
    """Waits for each of `waits_s` in turn, and notes what becomes of it."""

    def __init__(self, *waits_s: float, raises: BaseException | None = None) -> None:
        self.waits_s = waits_s
        self.raises = raises
        self.ended = ""

    async def __call__(self) -> str:
        try:
            for wait_s in self.waits_s:
                await asyncio.sleep(wait_s)
            if self.raises is not None:
                raise self.raises
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        finally:
            self.ended = self.ended or "through"
        return "done"


@pytest.mark.parametrize("waits_s", [(), (0,), (1,), (1, 0, 1)])
@virtual
async def test_its_result_is_that_of_the_work(waits_s: tuple[float, ...]) -> None:
    began_s = now_s()
    assert await within(5, Work(*waits_s)()) == "done"
    assert now_s() - began_s == pytest.approx(sum(waits_s), abs=1e-6)


@pytest.mark.parametrize("waits_s", [(), (1, 1)])
@virtual
async def test_what_the_work_raises_comes_through(waits_s: tuple[float, ...]) -> None:
    with pytest.raises(ZeroDivisionError):
        await within(5, Work(*waits_s, raises=ZeroDivisionError())())


@virtual
async def test_work_that_has_its_result_at_once_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    def timeout(_: float) -> Any:
        raise AssertionError("a timer")

    monkeypatch.setattr(asyncio, "timeout", timeout)
    assert await within(5, Work()()) == "done"


@pytest.mark.parametrize("waits_s", [(9,), (1, 9), (3, 3)])
@virtual
async def test_work_that_takes_too_long_is_cancelled(waits_s: tuple[float, ...]) -> None:
    work, began_s = Work(*waits_s), now_s()
    with pytest.raises(TimeoutError):
        await within(5, work())
    assert work.ended == "cancelled"
    assert now_s() - began_s == pytest.approx(5, abs=1e-6)


@virtual
async def test_work_may_go_on_after_a_failure_that_it_handles() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> str:
        try:
            await future
        except ZeroDivisionError:
            await asyncio.sleep(1)
        return "handled"

    asyncio.get_running_loop().call_later(1, future.set_exception, ZeroDivisionError())
    assert await within(5, work()) == "handled"


@virtual
async def test_who_is_cancelled_takes_the_work_along() -> None:
    work = Work(1, 9)
    task = asyncio.create_task(within(20, work()))
    await asyncio.sleep(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended == "cancelled"


@virtual
async def test_work_that_makes_the_best_of_the_end_of_its_time_has_a_result() -> None:
    async def work() -> str:
        try:
            await asyncio.sleep(9)
        except asyncio.CancelledError:
            return "late"
        return "in time"

    assert await within(5, work()) == "late"
    await asyncio.sleep(1)  # and nobody is cancelled any more


def test_work_that_is_left_behind_is_closed() -> None:
    work = Work(9)
    waiting = within(5, work())

    async def begin() -> None:
        waiting.send(None)
        waiting.close()

    asyncio.run(begin())
    assert work.ended == "through"
