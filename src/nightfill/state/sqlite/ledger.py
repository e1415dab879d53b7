"""The ledger in SQLite. What jobs computed comes by the triggers of `sums`, what was saved with the access log."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final

from nightfill.state.budgets import Period
from nightfill.state.ledger import LedgerLine

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

    from nightfill.state.access import Access
    from nightfill.state.sqlite.database import Database

_COLUMNS: Final = ", ".join(field.name for field in fields(LedgerLine))


class SqliteLedgerBook:
    """See `LedgerBook`."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._db = database
        self._clock = clock

    async def lines(
        self, *, since_day: int, until_day: int, tenant: str | None = None, context: str | None = None
    ) -> list[LedgerLine]:
        """See `LedgerBook`."""
        rows = self._db.read(
            f"""SELECT {_COLUMNS} FROM ledger WHERE day BETWEEN ?1 AND ?2
                AND (?3 IS NULL OR tenant = ?3) AND (?4 IS NULL OR context = ?4)
            ORDER BY day, tenant, context, machine, user""",  # noqa: S608 - a constant
            since_day,
            until_day,
            tenant,
            context,
        )
        return [LedgerLine(**row) for row in rows]

    async def prune(self, *, before_day: int) -> int:
        """See `LedgerBook`. The budgets forget the same days, but none of this month."""
        month = Period.MONTH.days(self._clock()).start

        def act(connection: sqlite3.Connection) -> int:
            connection.execute("DELETE FROM budget_spent WHERE day < ?", (min(before_day, month),))
            return connection.execute("DELETE FROM ledger WHERE day < ?", (before_day,)).rowcount

        return await self._db.write(act)


def note_uses(connection: sqlite3.Connection, rows: Iterable[Access]) -> None:
    """Add answered requests that named a context, and what their fills saved."""
    connection.executemany(
        """INSERT INTO ledger (day, tenant, context, machine, user, requests, hits, saved_tokens, saved_s)
        VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?)
        ON CONFLICT (day, tenant, context, machine, user) DO UPDATE SET requests = requests + 1,
            hits = hits + excluded.hits, saved_tokens = saved_tokens + excluded.saved_tokens,
            saved_s = saved_s + excluded.saved_s""",
        [
            (
                int(row.at_s // 86400),
                row.tenant,
                row.context,
                row.machine,
                row.user,
                row.layer == "answer" or row.saved_tokens > 0,
                row.saved_tokens,
                row.saved_s,
            )
            for row in rows
            if row.context is not None and row.status < 400
        ],
    )
