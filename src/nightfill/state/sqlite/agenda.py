"""The agenda in SQLite: an index of `contexts`; see `due` for what moves it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nightfill.state.agenda import CLAIM_S, HEADSTART_S, Due, Looked
from nightfill.state.sqlite.access import usage_of
from nightfill.state.sqlite.due import waits_for
from nightfill.state.sqlite.record import job_of
from nightfill.state.sqlite.turns import COLUMNS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from nightfill.contexts.context import Fingerprint, Tenant
    from nightfill.state.access import Usage
    from nightfill.state.sqlite.book import SqliteBook
    from nightfill.state.sqlite.database import Database
    from nightfill.state.sqlite.fills import SqliteFills
    from nightfill.state.sqlite.record import Clocks

    Read = Callable[..., Sequence[Any]]

_CONTEXT: Final = """SELECT c.*, v.content_bytes FROM contexts c
    JOIN versions v ON v.tenant = c.tenant AND v.fingerprint = c.current WHERE c.tenant = ? AND c.name = ?"""
_FILLS: Final = "SELECT * FROM fills WHERE tenant = ? AND fingerprint = ? ORDER BY id"
# Two questions, each with its index: one with OR would look at all contexts of the tenant.
_SHARED: Final = """SELECT EXISTS (SELECT 1 FROM contexts WHERE tenant = ?1 AND name <> ?2 AND current IN (?3, ?4))
    OR EXISTS (SELECT 1 FROM contexts WHERE tenant = ?1 AND name <> ?2 AND distilled IN (?3, ?4))"""
_HAVING: Final = """SELECT tenant, name FROM contexts WHERE tenant = ?1 AND current = ?2
    UNION SELECT tenant, name FROM contexts WHERE tenant = ?1 AND distilled = ?2"""
_JOBS: Final = f"""SELECT {COLUMNS} FROM jobs
    WHERE kind = 'fill' AND NOT ended AND target >= ?1 || '/' AND target < ?1 || '0'"""  # noqa: S608 - a constant


class SqliteAgenda:
    """See `Agenda`."""

    def __init__(self, database: Database, book: SqliteBook, fills: SqliteFills, *, clocks: Clocks) -> None:
        self._db = database
        self._book = book
        self._fills = fills
        self._clocks = clocks

    async def due(self, *, limit: int) -> list[Due]:
        """See `Agenda`."""
        # Asked of the reader, so that idle workers take no write lock at every look.
        if not self._db.read("SELECT EXISTS (SELECT 1 FROM contexts WHERE look_s <= ?)", self._clocks.wall())[0][0]:
            return []

        def act(connection: sqlite3.Connection) -> tuple[float, list[_Found]]:
            def read(sql: str, *values: object) -> Sequence[Any]:
                return connection.execute(sql, values).fetchall()

            now_s = self._clocks.wall()
            names = "SELECT tenant, name FROM contexts WHERE look_s <= ? ORDER BY look_s LIMIT ?"
            found = [_found(read, row["tenant"], row["name"], now_s) for row in read(names, now_s, limit)]
            connection.executemany(
                "UPDATE contexts SET look_s = ? WHERE tenant = ? AND name = ?",
                [(now_s + CLAIM_S, one.context["tenant"], one.context["name"]) for one in found if one is not None],
            )
            return now_s, [one for one in found if one is not None]

        now_s, found = await self._db.write(act)
        return [replace(self._due(one, now_s), mark=now_s + CLAIM_S) for one in found]

    async def after(self, place: str, *, limit: int) -> tuple[list[Due], str]:
        """See `Agenda`."""
        tenant, _, name = place.partition("\0")
        rows = self._db.read(
            "SELECT tenant, name FROM contexts WHERE (tenant, name) > (?, ?) ORDER BY tenant, name LIMIT ?",
            tenant,
            name,
            limit,
        )
        return self._read(rows), "\0".join(rows[-1]) if len(rows) == limit else ""

    async def having(self, tenant: Tenant, version: Fingerprint) -> list[Due]:
        """See `Agenda`."""
        return self._read(self._db.read(_HAVING, tenant, version))

    async def looked(self, looks: Sequence[Looked]) -> None:
        """See `Agenda`."""

        def act(connection: sqlite3.Connection) -> None:
            now_s = self._clocks.wall()
            connection.executemany(
                """UPDATE contexts SET look_s = ?, priority = ?, waits_for = ?
                WHERE tenant = ? AND name = ? AND look_s = ?""",
                [
                    (
                        now_s + look.again_in_s,
                        look.priority,
                        None if look.waits_for is None else waits_for(look.waits_for),
                        look.due.context.tenant,
                        look.due.context.name,
                        look.due.mark,
                    )
                    for look in looks
                ],
            )

        if looks:
            await self._db.write(act)

    def _read(self, rows: Sequence[Any]) -> list[Due]:
        now_s = self._clocks.wall()
        found = (_found(self._db.read, row["tenant"], row["name"], now_s) for row in rows)
        return [self._due(one, now_s) for one in found if one is not None]

    def _due(self, found: _Found, now_s: float) -> Due:
        outlines = map(self._fills.outline, found.fills)
        return Due(
            context=self._book.context(found.context),
            usage=found.usage,
            fills=tuple(one for one in outlines if one is not None),
            jobs=tuple(job_of(row, self._clocks) for row in found.jobs),
            shared=found.shared,
            mark=found.context["look_s"],
            changed=found.context["look_s"] <= now_s - HEADSTART_S,
        )


class _Found(NamedTuple):
    """Rows about one context."""

    context: Any
    usage: Usage
    fills: Sequence[Any]
    jobs: Sequence[Any]
    shared: bool


def _found(read: Read, tenant: str, name: str, now_s: float) -> _Found | None:
    rows = read(_CONTEXT, tenant, name)
    if not rows:
        return None
    current, distilled = rows[0]["current"], rows[0]["distilled"]
    fills: list[Any] = []
    jobs: list[Any] = []
    for version in (current, distilled):
        if version is not None:
            fills += read(_FILLS, tenant, version)
            jobs += read(_JOBS, f"{tenant}/{version}")
    hours = read("SELECT * FROM access_hours WHERE tenant = ? AND context = ? ORDER BY hour", tenant, name)
    shared = bool(read(_SHARED, tenant, name, current, distilled)[0][0])
    return _Found(rows[0], usage_of(hours, now_s), fills, jobs, shared)
