"""The access log in SQLite."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from nightfill.contexts.context import ContextName, Fingerprint, Form, Tenant
from nightfill.state.access import Access, Usage

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from nightfill.state.sqlite.database import Database

MAX_ROWS: Final = 1_000_000
"""`prune` keeps the newest."""
_WEEK_S: Final = 7 * 86400.0
_COLUMNS: Final = tuple(field.name for field in fields(Access))
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
        await self._db.write(lambda connection: connection.executemany(sql, values).rowcount)

    async def usage(self, tenant: Tenant, context: ContextName, *, now_s: float) -> Usage:
        """See `AccessLog`."""
        row = self._db.read(
            """SELECT max(at_s) AS last_s, coalesce(sum(at_s > ?3 - ?4), 0) AS week,
                coalesce(sum(broken AND at_s > ?3 - ?4), 0) AS broken
            FROM accesses WHERE tenant = ?1 AND context = ?2 AND at_s <= ?3""",
            tenant,
            context,
            now_s,
            _WEEK_S,
        )[0]
        return Usage(last_access_s=row["last_s"], accesses_7d=row["week"], broken_7d=row["broken"])

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
        before_s = self._clock() - older_than_s

        def act(connection: sqlite3.Connection) -> int:
            old = connection.execute("DELETE FROM accesses WHERE at_s < ?", (before_s,)).rowcount
            surplus = connection.execute(
                "DELETE FROM accesses WHERE id <= (SELECT max(id) FROM accesses) - ?", (MAX_ROWS,)
            ).rowcount
            return old + surplus

        return await self._db.write(act)


def _access(row: Any) -> Access:
    values = {name: row[name] for name in _COLUMNS}
    values["form"] = Form(values["form"])
    values["broken"] = bool(values["broken"])
    values["tenant"] = Tenant(values["tenant"])
    values["fingerprint"] = None if values["fingerprint"] is None else Fingerprint(values["fingerprint"])
    return Access(**values)
