"""Writes to the state behind the requests, by a task of its own: what came together is written together."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Self

from nightfill.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_LOG: Final = logging.getLogger(__name__)


class Writer:
    """Calls `write` when something was noted, and once more at the end. For one event loop.

    What is to be written is the caller's, who bounds it. A failure of the state is told once, and `write` is called
    again after `retry_s`; not at the end. Use as an asynchronous context manager; leaving it waits for the last write,
    for at most `close_s` seconds, and raises what else went wrong.
    """

    def __init__(
        self,
        write: Callable[[], Awaitable[None]],
        *,
        name: str,
        every_s: float = 0.0,
        idle_s: float | None = None,
        retry_s: float = 2.0,
        close_s: float = 2.0,
    ) -> None:
        """`every_s`: so long it waits for more to come. `idle_s`: without a note, it writes once in that time."""
        self._write = write
        self._name = name
        self._every_s, self._idle_s, self._retry_s, self._close_s = every_s, idle_s, retry_s, close_s
        self._noted, self._written, self._closing = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._written.set()
        self._task: asyncio.Task[None] | None = None

    @property
    def closing(self) -> bool:
        """Whether this is the end."""
        return self._closing.is_set()

    def note(self) -> None:
        """There is something to write. Never blocks."""
        self._written.clear()
        self._noted.set()

    async def flush(self) -> None:
        """Wait until `write` has come back after all that was noted by now."""
        await self._written.wait()

    async def _run(self) -> None:
        failing = False
        try:
            while self._noted.is_set() or not self.closing:
                await _pause(self._noted, self._idle_s)
                await _pause(self._closing, self._every_s)  # several together cost little more than one
                self._noted.clear()
                try:
                    await self._write()
                    failing = False
                except (StateError, TimeoutError) as exc:
                    if not failing:
                        _LOG.warning("%s: %s", self._name, exc or "no answer in time")
                    failing = True
                    if self.closing:
                        return
                    self._noted.set()
                    await _pause(self._closing, self._retry_s)
                if not self._noted.is_set():
                    self._written.set()
        finally:
            self._written.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=self._name)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        # The task ends by itself, since a write cut short and repeated could put things in twice.
        self._closing.set()
        self._noted.set()
        pending = (await asyncio.wait({self._task}, timeout=self._close_s))[1]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error


async def _pause(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass  # the usual case
