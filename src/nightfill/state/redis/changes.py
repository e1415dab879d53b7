"""Changes of the book of contexts in Redis: our own, and the number by which readers see those of others."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from nightfill.errors import StateUnavailable
from nightfill.state.redis.server import ROOT, scripts

if TYPE_CHECKING:
    from nightfill.state.redis.server import Server

_LOG: Final = logging.getLogger(__name__)
LOOK_EVERY_S: Final = 0.05
SETTLE_S: Final = 2 * LOOK_EVERY_S
"""So long at most a change by another process goes unseen by `number`, whatever happens to the server and to us."""


class RedisChanges:
    """`number` answers from memory: own changes are in it at once, those of others within `SETTLE_S`. Once the server
    has not answered for so long, or we were too late to ask, it says so.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._scripts = scripts("book")
        self._number = 0
        self._own = 0
        self._asked_at_s = float("-inf")
        """When the newest question that was answered was put: changes by others before that are in `_number`."""
        self._untold = 0
        self._looking: asyncio.Task[None] | None = None

    async def make(self, name: str, *words: object, blobs: tuple[bytes, ...] = ()) -> Any:
        """The reply of the program of `book.lua`, which begins with the number of the change, if it made one."""
        asked_at_s = time.monotonic()
        reply = await self._server.run(self._scripts[name], *words, blobs=blobs)
        if reply[0] > 0:
            self._asked_at_s = max(self._asked_at_s, asked_at_s)
            self._own += 1
            self._number = max(self._number, reply[0])
        return reply

    def number(self) -> int:
        """See `ContextBook.changes`. The first call sets off the task that looks for changes by others."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="changes of the book")
        if time.monotonic() - self._asked_at_s <= SETTLE_S:
            return self._number
        self._untold -= 1
        return self._untold

    async def aclose(self) -> None:
        """Stop looking. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _look(self) -> None:
        said = ""
        while True:
            try:
                before, asked_at_s = self._own, time.monotonic()
                number = int(await self._server.call("GET", f"{ROOT}:changes") or 0)
                # It may be from before a change of our own.
                self._number = number if before == self._own else max(self._number, number)
                self._asked_at_s = max(self._asked_at_s, asked_at_s)
                if said:
                    _LOG.info("the state answers again")
                said = ""
            except StateUnavailable as exc:
                if not said:
                    _LOG.warning("going on with what is known of contexts: %s", exc)
                said = str(exc)
            await asyncio.sleep(LOOK_EVERY_S)
