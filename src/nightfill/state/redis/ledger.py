"""The ledger in Redis. What jobs computed comes with them, what was saved with the access log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nightfill.state.ledger import LedgerLine
from nightfill.state.redis.server import ROOT

if TYPE_CHECKING:
    from nightfill.state.redis.server import Server


class RedisLedgerBook:
    """See `LedgerBook`."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def lines(
        self, *, since_day: int, until_day: int, tenant: str | None = None, context: str | None = None
    ) -> list[LedgerLine]:
        """See `LedgerBook`. Read in steps; each line is of one instant."""
        found: dict[tuple[int, bytes], LedgerLine] = {}
        for day in await self._server.call("ZRANGEBYSCORE", f"{ROOT}:ledger", since_day, until_day):
            async for key, packed in self._server.scan("HSCAN", f"{ROOT}:ledger:{int(day)}"):
                whose, what, machine, user = key.decode().split("\0")
                if tenant in (None, whose) and context in (None, what):
                    tokens, seconds, fills, requests, hits, saved_tokens, saved_s = msgspec.msgpack.decode(packed)
                    found[int(day), key] = LedgerLine(
                        day=int(day),
                        tenant=whose,
                        user=user,
                        context=what,
                        machine=machine,
                        background_tokens=tokens,
                        background_s=float(seconds),
                        fills=fills,
                        requests=requests,
                        hits=hits,
                        saved_tokens=saved_tokens,
                        saved_s=float(saved_s),
                    )
        return [found[key] for key in sorted(found)]

    async def prune(self, *, before_day: int) -> int:
        """See `LedgerBook`. What budgets have spent goes by itself, a day after its period."""
        dropped = 0
        for day in await self._server.call("ZRANGEBYSCORE", f"{ROOT}:ledger", "-inf", f"({before_day}"):
            key = f"{ROOT}:ledger:{int(day)}"
            dropped += await self._server.call("HLEN", key)
            await self._server.call("UNLINK", key)
            await self._server.call("ZREM", f"{ROOT}:ledger", day)
        return dropped
