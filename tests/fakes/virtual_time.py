"""An event loop whose clock jumps: nobody waits, and whatever takes hours in it ends at once."""

from __future__ import annotations

import asyncio
import functools
import selectors
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T")

MOST_VIRTUAL_S = 30 * 86400.0


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait: what would have been waited is added to the loop's time."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("every task waits for something that never comes")
            self.now_s += max(timeout, 1e-9)
            if self.now_s > MOST_VIRTUAL_S:
                raise RuntimeError("a month has passed, and it does not end")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Threads would take real time: what is handed to one runs on the spot."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def run_in_executor(self, _executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        return asyncio.wrap_future(done_by(functools.partial(func, *args)), loop=self)


def done_by(func: Callable[[], T]) -> Future[T]:
    """A future that is done already."""
    future: Future[T] = Future()
    try:
        future.set_result(func())
    except Exception as exc:  # noqa: BLE001 - it is kept for whoever asks
        future.set_exception(exc)
    return future


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test in a `VirtualLoop`."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now_s() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], bool], *, within_s: float = 3600.0, step_s: float = 0.001) -> None:
    """Let virtual time pass until `condition` holds."""
    deadline_s = now_s() + within_s
    while not condition():
        assert now_s() < deadline_s, "it did not come about"
        await asyncio.sleep(step_s)
