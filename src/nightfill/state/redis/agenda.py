"""The agenda in Redis: a sorted set, moved by the programs of the book, the queue and the access log."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from nightfill.state.agenda import CLAIM_S, HEADSTART_S, Due, Looked
from nightfill.state.redis.access import usage_of
from nightfill.state.redis.budgets import key_of
from nightfill.state.redis.jobs import job_of
from nightfill.state.redis.server import ROOT, Server, batches, pairs, scripts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts.context import Fingerprint, Outline, Tenant
    from nightfill.state.redis.book import RedisBook
    from nightfill.state.redis.fills import RedisFills

_AT_ONCE: Final = 100
"""Contexts in one step, so that others need not wait for long."""


class RedisAgenda:
    """See `Agenda`."""

    def __init__(self, server: Server, book: RedisBook, fills: RedisFills) -> None:
        self._server = server
        self._book = book
        self._fills = fills
        self._scripts = scripts("agenda")
        self._tenants: list[Tenant] = []
        """Of the walk under way."""

    async def due(self, *, limit: int) -> list[Due]:
        """See `Agenda`."""
        found: list[Due] = []
        while len(found) < limit:
            most = min(_AT_ONCE, limit - len(found))
            some = await self._dues(await self._server.run(self._scripts["due"], most, CLAIM_S), claimed=True)
            found += some
            if len(some) < most:
                break
        return found

    async def after(self, place: str, *, limit: int) -> tuple[list[Due], str]:
        """See `Agenda`."""
        tenant, _, cursor = place.partition("\0")
        if not place or not self._tenants:
            self._tenants = await self._book.tenants()
        found: list[Due] = []
        for index in range(bisect_left(self._tenants, tenant), len(self._tenants)):
            whose = self._tenants[index]
            key, at = f"{ROOT}:contexts:{whose}", cursor.encode() if whose == tenant and cursor else b"0"
            while True:
                at, some = await self._server.call("HSCAN", key, at, "COUNT", limit)
                found += await self._gathered([f"{whose}\0{name.decode()}" for name, _ in pairs(some)])
                if at == b"0" or len(found) >= limit:
                    break
            if at != b"0":
                return found, f"{whose}\0{at.decode()}"
            if len(found) >= limit and index + 1 < len(self._tenants):
                return found, f"{self._tenants[index + 1]}\0"
        return found, ""

    async def having(self, tenant: Tenant, version: Fingerprint) -> list[Due]:
        """See `Agenda`."""
        return await self._dues(await self._server.run(self._scripts["having"], tenant, version))

    async def looked(self, looks: Sequence[Looked]) -> None:
        """See `Agenda`."""
        for some in batches(looks, _AT_ONCE):
            rows = [
                (
                    look.due.context.tenant,
                    look.due.context.name,
                    False if look.due.mark is None else look.due.mark,
                    look.again_in_s,
                    look.priority,
                    "" if look.waits_for is None else key_of(look.waits_for),
                )
                for look in some
            ]
            await self._server.run(self._scripts["looked"], rows)

    async def _gathered(self, members: Sequence[str]) -> list[Due]:
        found: list[Due] = []
        for some in batches(members, _AT_ONCE):
            found += await self._dues(await self._server.run(self._scripts["gather"], list(some)))
        # What was put before there was an index of them.
        await self._book.watch([due.context for due in found])
        return found

    async def _dues(self, reply: Any, *, claimed: bool = False) -> list[Due]:
        now_s = float(reply[0])
        return [await self._due(now_s, *row, claimed=claimed) for row in reply[1]]

    async def _due(
        self,
        now_s: float,
        record: bytes,
        uses: Sequence[bytes],
        fills: Sequence[bytes],
        jobs: Sequence[bytes],
        shared: int,
        at: bytes,
        *,
        claimed: bool,
    ) -> Due:
        context = self._book.context(record)
        outlines: list[Outline] = []
        for field, packed in pairs(fills):
            outline = await self._fills.outline(context.tenant, field, packed)
            if outline is not None:
                outlines.append(outline)
        mark = float(at) if at else None
        return Due(
            context=context,
            usage=usage_of(uses, now_s),
            fills=tuple(outlines),
            jobs=tuple(map(job_of, jobs)),
            shared=bool(shared),
            mark=now_s + CLAIM_S if claimed else mark,
            changed=mark is not None and mark <= now_s - HEADSTART_S,
        )
