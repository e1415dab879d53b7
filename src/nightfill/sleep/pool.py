"""The worker's engines: started when there is work for them, ended when there was none for a while."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nightfill.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from nightfill.engines.engine import Engine

    EngineFactory = Callable[[], Awaitable[Engine]]
    View = Callable[[Engine], Engine]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    engine: Engine
    users: int = 0
    used_at_s: float = 0.0
    suspect: bool = False
    """It failed its last user; it is asked for its health before the next one gets it."""


class EnginePool:
    """Engines by name, each from its factory. For one event loop; `aclose` ends what runs."""

    def __init__(
        self,
        factories: Mapping[str, EngineFactory],
        *,
        idle_stop_s: Mapping[str, float],
        views: Mapping[str, tuple[str, View]] | None = None,
        owns: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`views`: engines that are made of the one that is named, anew each time they are lent, and end with it; an
        engine's own name may be among them. Unless it `owns` the engines,
        nothing is ended: somebody else has them, too.
        """
        self._views = dict(views or {})
        self._owns = owns
        self._factories = dict(factories)
        self._idle_stop_s = idle_stop_s
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._changing = asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """All engines, running or not."""
        return tuple(dict.fromkeys((*self._factories, *self._views)))

    @property
    def running(self) -> tuple[str, ...]:
        """Those that run."""
        return tuple(self._running)

    @contextlib.asynccontextmanager
    async def lent(self, name: str) -> AsyncIterator[Engine]:
        """The engine, started if need be, which is not ended meanwhile. Raises what its factory raises."""
        below, view = self._views.get(name, (name, None))
        running = await self._start(below)
        try:
            yield running.engine if view is None else view(running.engine)
        except EngineError:
            running.suspect = True
            raise
        finally:
            running.users -= 1
            running.used_at_s = self._clock()

    async def _start(self, name: str) -> _Running:
        async with self._changing:
            there = self._running.get(name)
            if there is not None and there.suspect and not there.users:
                there.suspect = False
                if not await there.engine.healthy():
                    _log.warning("engine %s does not answer: a new one takes its place", name)
                    del self._running[name]
                    await self._end(there)
                    there = None
            if there is None:
                there = self._running[name] = _Running(await self._factories[name]())
                _log.info("engine %s: started for background work", name)
            there.users += 1
            return there

    async def stop_idle(self) -> None:
        """End the engines that nobody has used for their time."""
        async with self._changing:
            now_s = self._clock()
            for name, running in list(self._running.items()):
                if not running.users and now_s - running.used_at_s >= self._idle_stop_s[name]:
                    del self._running[name]
                    await self._end(running)
                    _log.info("engine %s: stopped, no background work", name)

    async def aclose(self) -> None:
        """End all engines. Idempotent."""
        async with self._changing:
            while self._running:
                await self._end(self._running.popitem()[1])

    async def _end(self, running: _Running) -> None:
        if self._owns:
            await running.engine.aclose()
