"""The access log's front: rows are noted at once and written in batches, and never hold a request up."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from nightfill.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightfill.state.access import Access, AccessLog

_LOG: Final = logging.getLogger(__name__)
_BATCH: Final = 500


class Journal:
    """A bounded buffer in front of an `AccessLog`, written out by a task of its own.

    While the log fails, rows wait until the buffer is full; then new ones are dropped, and `on_drop` is told how many.
    Use as an asynchronous context manager; leaving it writes out what is left, for at most `close_s` seconds.
    """

    def __init__(
        self,
        log: AccessLog,
        *,
        on_drop: Callable[[int], None],
        capacity: int = 10_000,
        every_s: float = 0.25,
        retry_s: float = 2.0,
        write_s: float = 5.0,
        close_s: float = 2.0,
    ) -> None:
        self._log = log
        self._on_drop = on_drop
        self._rows: deque[Access] = deque()
        self._capacity = capacity
        self._every_s, self._retry_s, self._write_s, self._close_s = every_s, retry_s, write_s, close_s
        self._noted = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def note(self, row: Access) -> None:
        """Take a row in. Never blocks, never raises."""
        if len(self._rows) >= self._capacity:
            self._on_drop(1)
            return
        self._rows.append(row)
        self._noted.set()

    async def flush(self) -> None:
        """Write out what is there now. Raises StateError."""
        while self._rows:
            batch = list(islice(self._rows, _BATCH))
            try:
                async with asyncio.timeout(self._write_s):
                    await self._log.append(batch)
            except TimeoutError as exc:
                raise StateError(f"the access log took more than {self._write_s:g} s") from exc
            for _ in batch:
                self._rows.popleft()

    async def _run(self) -> None:
        failing = False
        while self._rows or not self._closing.is_set():
            await self._noted.wait()
            self._noted.clear()
            await self._pause(self._every_s)
            try:
                await self.flush()
                failing = False
            except StateError as exc:
                if not failing:
                    _LOG.warning("access log: %s", exc)
                failing = True
                self._noted.set()
                if self._closing.is_set():
                    return
                await self._pause(self._retry_s)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass  # the usual case

    async def __aenter__(self) -> Journal:
        self._task = asyncio.create_task(self._run(), name="journal")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        # The task ends by itself, since a write cut short and repeated could put rows in twice.
        self._closing.set()
        self._noted.set()
        pending = (await asyncio.wait({self._task}, timeout=self._close_s))[1]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        if self._rows:
            _LOG.warning("access log: %d rows lost at the end", len(self._rows))
            self._on_drop(len(self._rows))
