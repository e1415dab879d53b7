"""The access log in Redis: the newest rows, and per context a count for each hour."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from dataclasses import fields
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts.context import ContextName, Fingerprint, Form, Tenant
from nightfill.state.access import HISTORY_DAYS, Access, Usage, asks, tells
from nightfill.state.redis.server import ROOT, Server, pairs, scripts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_ROWS: Final = 100_000
"""Kept; the oldest go first."""
_HOUR_S: Final = 3600
_WEEK: Final = 7 * 24
"""Hours."""
_AT_ONCE: Final = 500
_COLUMNS: Final = tuple(field.name for field in fields(Access))
_NOBODY: Final = Tenant("")
"""Hours of models are kept as those of contexts are, under no tenant."""
_values = attrgetter(*_COLUMNS)


class RedisAccessLog:
    """See `AccessLog`.

    Rows of one log are numbered, and the store knows the highest number that it has. So rows whose batch may or may not
    have arrived, because the answer was lost, can be given again as they were, and are not counted twice.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._scripts = scripts("books")
        self._me, self._numbers = secrets.token_hex(8), itertools.count(1)
        self._unsure: dict[int, tuple[int, Access]] = {}
        """By identity, with their numbers: given, and not known to be written."""
        self._one_at_a_time = asyncio.Lock()

    async def append(self, rows: Sequence[Access]) -> None:
        """See `AccessLog`."""
        if not rows:
            return
        async with self._one_at_a_time:
            self._unsure = {id(row): self._unsure.get(id(row)) or (next(self._numbers), row) for row in rows}
            batch = sorted(self._unsure.values(), key=itemgetter(0))
            await self._server.run(
                self._scripts["append"],
                self._me,
                MAX_ROWS,
                [(number, *_sums(row)) for number, row in batch],
                blobs=tuple(msgspec.msgpack.encode(_values(row)) for _, row in batch),
            )
            self._unsure.clear()

    async def usage(self, tenant: Tenant, context: ContextName, *, now_s: float) -> Usage:
        """See `AccessLog`."""
        return usage_of(await self._server.call("HGETALL", f"{ROOT}:uses:{tenant}\0{context}"), now_s)

    async def model_hours(self, model: str, *, now_s: float) -> Mapping[int, int]:
        """See `AccessLog`."""
        return (await self.usage(_NOBODY, ContextName(model), now_s=now_s)).hours

    async def recent(
        self, *, tenant: Tenant | None = None, context: ContextName | None = None, limit: int = 100
    ) -> list[Access]:
        """See `AccessLog`. Looks at one row after the other, from the newest, until there are enough."""
        found: list[Access] = []
        for start in range(0, MAX_ROWS, _AT_ONCE):
            some = await self._server.call("ZREVRANGE", f"{ROOT}:accesses", start, start + _AT_ONCE - 1)
            rows = (_access(packed[16:]) for packed in some)
            found += [row for row in rows if tenant in (None, row.tenant) and context in (None, row.context)]
            if len(found) >= limit or len(some) < _AT_ONCE:
                break
        return found[:limit]

    async def prune(self, *, older_than_s: float) -> int:
        """See `AccessLog`. Hours go by themselves: a context's, once it was not used for `HISTORY_DAYS`."""
        return int(await self._server.run(self._scripts["prune_accesses"], older_than_s))


def usage_of(reply: Sequence[bytes], now_s: float) -> Usage:
    """From a context's hours; those that are still to come do not count."""
    now = int(now_s // _HOUR_S)
    rows = sorted((int(hour), *msgspec.msgpack.decode(packed)) for hour, packed in pairs(reply))
    rows = [row for row in rows if row[0] <= now]
    week = [row for row in rows if row[0] > now - _WEEK]
    return Usage(
        last_access_s=min(float(rows[-1][3]), now_s) if rows else None,
        accesses_7d=sum(row[1] for row in week),
        broken_7d=sum(row[2] for row in week),
        hours={row[0]: row[1] for row in rows if row[0] > now - HISTORY_DAYS * 24},
    )


def _sums(row: Access) -> tuple[object, ...]:
    """What the counts of hours and the ledger need of a row."""
    return (
        row.at_s,
        row.tenant,
        row.context or "",
        int(row.broken),
        row.machine,
        row.user,
        row.status < 400,
        int(row.layer == "answer" or row.saved_tokens > 0),
        row.saved_tokens,
        row.saved_s,
        tells(row),
        row.model if asks(row) else "",
    )


def _access(packed: bytes) -> Access:
    # Rows of an older version lack the last columns, and have their defaults.
    values = dict(zip(_COLUMNS, msgspec.msgpack.decode(packed), strict=False))
    values["form"] = Form(values["form"])
    values["tenant"] = Tenant(values["tenant"])
    values["fingerprint"] = None if values["fingerprint"] is None else Fingerprint(values["fingerprint"])
    return Access(**values)
