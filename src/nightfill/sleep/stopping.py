"""Waits that end early when the process was asked to stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from nightfill.errors import NightfillError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when `stop` came first; `work` is cancelled and awaited then."""
    failure: BaseException | None = None
    task: asyncio.Task[T] | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(work)
            watch = tasks.create_task(_cancel_at(stop, task))
            task.add_done_callback(lambda _: watch.cancel())
    except* NightfillError as group:
        failure = first_of(group)
    if failure is not None:
        raise failure
    assert task is not None
    return None if task.cancelled() else task.result()


async def pause(stop: asyncio.Event, seconds: float, sleep: Callable[[float], Awaitable[None]]) -> None:
    """Sleep so long, or less when asked to stop."""
    await unless(stop, _slept(sleep, seconds))


async def _cancel_at(stop: asyncio.Event, task: asyncio.Task[T]) -> None:
    await stop.wait()
    task.cancel()


async def _slept(sleep: Callable[[float], Awaitable[None]], seconds: float) -> None:
    await sleep(seconds)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first single error of a group, at whatever depth."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
