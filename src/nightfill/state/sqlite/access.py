"""The access log in SQLite."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from nightfill.contexts.context import ContextName, Fingerprint, Form, Tenant
from nightfill.state.access import HISTORY_DAYS, Access, Usage, asks, tells
from nightfill.state.agenda import HEADSTART_S
from nightfill.state.sqlite.ledger import note_uses

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

    from nightfill.state.sqlite.database import Database

MAX_ROWS: Final = 1_000_000
"""`prune` keeps the newest."""
_HOUR_S: Final = 3600
_WEEK: Final = 7 * 24
"""Hours."""
_COLUMNS: Final = tuple(field.name for field in fields(Access))
_NOBODY: Final = Tenant("")
"""Hours of models are kept as those of contexts are, under no tenant."""
_values = attrgetter(*_COLUMNS)


class SqliteAccessLog:
    """See `AccessLog`."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._db = database
        self._clock = clock

    async def append(self, rows: Sequence[Access]) -> None:
        """See `AccessLog`."""
        if not rows:
            return
        values = [_values(row) for row in rows]
        marks = ", ".join("?" * len(_COLUMNS))
        sql = f"INSERT INTO accesses ({', '.join(_COLUMNS)}) VALUES ({marks})"  # noqa: S608 - constants
        hours = [(row.tenant, row.context, row.at_s // _HOUR_S, row.broken, row.at_s) for row in rows if row.context]
        hours += [(_NOBODY, ContextName(row.model), row.at_s // _HOUR_S, False, row.at_s) for row in rows if asks(row)]

        def act(connection: sqlite3.Connection) -> None:
            connection.executemany(sql, values)
            connection.executemany(
                """INSERT INTO access_hours VALUES (?, ?, CAST(? AS INTEGER), 1, ?, ?)
                ON CONFLICT (tenant, context, hour) DO UPDATE SET accesses = accesses + 1,
                    broken = broken + excluded.broken, last_s = max(last_s, excluded.last_s)""",
                hours,
            )
            connection.executemany(
                "UPDATE contexts SET look_s = min(look_s, ?) WHERE tenant = ? AND name = ?",
                [(self._clock() - HEADSTART_S, row.tenant, row.context) for row in rows if tells(row)],
            )
            note_uses(connection, rows)

        await self._db.write(act)

    async def usage(self, tenant: Tenant, context: ContextName, *, now_s: float) -> Usage:
        """See `AccessLog`."""
        sql = "SELECT * FROM access_hours WHERE tenant = ? AND context = ? ORDER BY hour"
        return usage_of(self._db.read(sql, tenant, context), now_s)

    async def model_hours(self, model: str, *, now_s: float) -> Mapping[int, int]:
        """See `AccessLog`."""
        return (await self.usage(_NOBODY, ContextName(model), now_s=now_s)).hours

    async def recent(
        self, *, tenant: Tenant | None = None, context: ContextName | None = None, limit: int = 100
    ) -> list[Access]:
        """See `AccessLog`."""
        rows = self._db.read(
            """SELECT * FROM accesses WHERE (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR context = ?2)
            ORDER BY at_s DESC, id DESC LIMIT ?3""",
            tenant,
            context,
            limit,
        )
        return [_access(row) for row in rows]

    async def prune(self, *, older_than_s: float) -> int:
        """See `AccessLog`. Also drops the oldest rows beyond `MAX_ROWS`."""
        now_s = self._clock()
        before_s = now_s - older_than_s
        before_hour = int(min(before_s, now_s - HISTORY_DAYS * 86400) // _HOUR_S)

        def act(connection: sqlite3.Connection) -> int:
            connection.execute("DELETE FROM access_hours WHERE hour < ?", (before_hour,))
            old = connection.execute("DELETE FROM accesses WHERE at_s < ?", (before_s,)).rowcount
            surplus = connection.execute(
                "DELETE FROM accesses WHERE id <= (SELECT max(id) FROM accesses) - ?", (MAX_ROWS,)
            ).rowcount
            return old + surplus

        return await self._db.write(act)


def usage_of(rows: Sequence[Any], now_s: float) -> Usage:
    """From a context's rows of `access_hours`, the oldest first; those that are still to come do not count."""
    now = int(now_s // _HOUR_S)
    rows = [row for row in rows if row["hour"] <= now]
    week = [row for row in rows if row["hour"] > now - _WEEK]
    return Usage(
        last_access_s=min(rows[-1]["last_s"], now_s) if rows else None,
        accesses_7d=sum(row["accesses"] for row in week),
        broken_7d=sum(row["broken"] for row in week),
        hours={row["hour"]: row["accesses"] for row in rows if row["hour"] > now - HISTORY_DAYS * 24},
    )


def _access(row: Any) -> Access:
    values = {name: row[name] for name in _COLUMNS}
    values["form"] = Form(values["form"])
    values["broken"] = bool(values["broken"])
    values["tenant"] = Tenant(values["tenant"])
    values["fingerprint"] = None if values["fingerprint"] is None else Fingerprint(values["fingerprint"])
    return Access(**values)
