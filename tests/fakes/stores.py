"""The stores behind the state protocols. A further one joins the conformance tests by a line in `STORES`."""

from __future__ import annotations

import atexit
import contextlib
import functools
from typing import TYPE_CHECKING, Final, TypedDict

from fakes.redis_server import RedisServer
from nightfill.state.jobs import QueueRules
from nightfill.state.redis import open_redis_state
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nightfill.state.answers import AnswerBounds
    from nightfill.state.seal import TextSeal
    from nightfill.state.state import State


class Options(TypedDict):
    """What a handle may be opened with beside its rules."""

    bounds: AnswerBounds | None
    seal: TextSeal | None


class HostClock:
    """A wall clock that may be set, and a steady one that may not."""

    def __init__(self) -> None:
        self.wall_s = 1_700_000_000.0
        self.steady_s = 5_000.0

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds

    def set_wall(self, by_s: float) -> None:
        self.wall_s += by_s


class Store:
    """One store, of which several handles may be open, as if by several processes."""

    def __init__(self, opened: Callable[[QueueRules, Options], State], clock: HostClock) -> None:
        self._opened = opened
        self._stack = contextlib.AsyncExitStack()
        self.clock = clock

    def open(
        self, rules: QueueRules | None = None, *, bounds: AnswerBounds | None = None, seal: TextSeal | None = None
    ) -> State:
        state = self._opened(rules or QueueRules(), Options(bounds=bounds, seal=seal))
        self._stack.push_async_callback(state.aclose)
        return state

    async def aclose(self) -> None:
        await self._stack.aclose()


def sqlite_store(folder: Path) -> Store:
    clock = HostClock()
    return Store(
        lambda rules, options: open_state(
            folder / "data" / "state.db",
            rules=rules,
            **options,
            clock=lambda: clock.wall_s,
            steady=lambda: clock.steady_s,
            boot="a boot",
        ),
        clock,
    )


@functools.cache
def redis_server() -> RedisServer:
    """One for all tests of this process."""
    server = RedisServer()
    atexit.register(server.close)
    return server


def redis_store(folder: Path) -> Store:
    server = redis_server()
    server.call([b"FLUSHALL"])
    clock = HostClock()
    # Its time is the server's own: no host's wall clock moves it.
    epoch_s = clock.wall_s - clock.steady_s
    return Store(
        lambda rules, options: open_redis_state(
            server.url, rules=rules, clock=lambda: epoch_s + clock.steady_s, **options
        ),
        clock,
    )


STORES: Final = {"redis": redis_store, "sqlite": sqlite_store}
