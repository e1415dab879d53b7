"""Where the hosts of a fleet tell each other their load, in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nightfill.state.fleet_board import HostLoad
from nightfill.state.redis.server import ROOT, scripts

if TYPE_CHECKING:
    from nightfill.state.load import Load
    from nightfill.state.redis.server import Server


class RedisLoads:
    """See `SharedLoads`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._scripts = scripts("books")

    async def publish(self, host: str, load: Load, *, idle_s: float) -> None:
        """See `SharedLoads`."""
        await self._server.run(self._scripts["publish"], host, load.in_flight, idle_s, load.ttft_s)

    async def withdraw(self, host: str) -> None:
        """See `SharedLoads`."""
        await self._server.call("HDEL", f"{ROOT}:load", host)

    async def read(self, *, gone_s: float) -> list[HostLoad]:
        """See `SharedLoads`."""
        rows = msgspec.msgpack.decode(await self._server.run(self._scripts["loads"], gone_s))
        return [
            HostLoad(host=host, in_flight=in_flight, idle_s=idle_s, ttft_s=ttft_s, age_s=age_s)
            for host, in_flight, idle_s, ttft_s, age_s in rows
        ]
