"""A bound on waiting that costs nothing where nobody waits.

A timer for each look at the state takes longer than the look itself, which mostly has its answer at once (SQLite), and
each request looks.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")


async def within(limit_s: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which may take `limit_s` from when it first has to wait. Raises TimeoutError, and what
    `work` raises. It runs in the calling task, is cancelled with it, and is ended in any case.
    """
    try:
        waits_for = work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    async with asyncio.timeout(limit_s):
        return await _Begun(work, waits_for)


class _Begun(Generic[T]):
    """A coroutine that was begun by hand, and waits for something."""

    def __init__(self, work: Coroutine[Any, Any, T], waits_for: object) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        step: Callable[[], Any]
        while True:
            try:
                sent = yield self._waits_for
            except GeneratorExit:
                self._work.close()
                raise
            except BaseException as exc:  # noqa: BLE001 - it is the work's to handle
                thrown = exc
                step = lambda: self._work.throw(thrown)  # noqa: B023, E731 - called at once
            else:
                step = lambda: self._work.send(sent)  # noqa: B023, E731 - called at once
            try:
                self._waits_for = step()
            except StopIteration as end:
                result: T = end.value
                return result
