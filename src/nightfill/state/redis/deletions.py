"""Blocks that are to be deleted and may still lie in a tier that all hosts share, so that no restart forgets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.state.deletions import Owed
from nightfill.state.redis.server import ROOT, Server, batches, scripts

if TYPE_CHECKING:
    from collections.abc import Iterable

_AT_ONCE: Final = 1000


class RedisDeletions:
    """See `Deletions`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._scripts = scripts("books")
        self._owed = Owed(0, None)

    async def owe(self, keys: Iterable[bytes]) -> None:
        """See `Deletions`."""
        for some in batches(tuple(keys), _AT_ONCE):
            await self._server.run(self._scripts["owe"], blobs=tuple(some))

    async def settle(self, keys: Iterable[bytes]) -> None:
        """See `Deletions`."""
        for some in batches(tuple(keys), _AT_ONCE):
            await self._server.call("ZREM", f"{ROOT}:deletions", *some)

    async def keys(self, *, limit: int) -> list[bytes]:
        """See `Deletions`."""
        oldest: list[bytes] = await self._server.call("ZRANGE", f"{ROOT}:deletions", 0, limit - 1)
        since = await self._server.call("ZRANGE", f"{ROOT}:deletions", 0, 0, "WITHSCORES")
        blocks = await self._server.call("ZCARD", f"{ROOT}:deletions")
        self._owed = Owed(blocks, float(since[1]) if since else None)
        return oldest

    def owed(self) -> Owed:
        """See `Deletions`. As the last call of `keys` found it."""
        return self._owed
