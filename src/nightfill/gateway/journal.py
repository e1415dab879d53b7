"""The access log's front: rows are noted at once and written in batches, and never hold a request up."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, Self

from nightfill.errors import StateError
from nightfill.state.writer import Writer

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
        self._write_s = write_s
        self._writer = Writer(self.flush, name="access log", every_s=every_s, retry_s=retry_s, close_s=close_s)

    def note(self, row: Access) -> None:
        """Take a row in. Never blocks, never raises."""
        if len(self._rows) >= self._capacity:
            self._on_drop(1)
            return
        self._rows.append(row)
        self._writer.note()

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

    async def __aenter__(self) -> Self:
        await self._writer.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._writer.__aexit__(*error)
        if self._rows:
            _LOG.warning("access log: %d rows lost at the end", len(self._rows))
            self._on_drop(len(self._rows))
