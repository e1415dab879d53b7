"""The deletions that are owed, in SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.state.deletions import Owed

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

    from nightfill.state.sqlite.database import Database


class SqliteDeletions:
    """See `Deletions`."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._db = database
        self._clock = clock

    async def owe(self, keys: Iterable[bytes]) -> None:
        """See `Deletions`. Survives a power cut."""
        rows = [(key, self._clock()) for key in keys]

        def act(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR IGNORE INTO deletions VALUES (?, ?)", rows)

        await self._db.write(act, durable=True)

    async def settle(self, keys: Iterable[bytes]) -> None:
        """See `Deletions`."""
        rows = [(key,) for key in keys]

        def act(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM deletions WHERE key = ?", rows)

        await self._db.write(act)

    async def keys(self, *, limit: int) -> list[bytes]:
        """See `Deletions`."""
        return [row["key"] for row in self._db.read("SELECT key FROM deletions ORDER BY since_s LIMIT ?", limit)]

    def owed(self) -> Owed:
        """See `Deletions`. As it is now."""
        row = self._db.read("SELECT count(*) AS blocks, min(since_s) AS since_s FROM deletions")[0]
        return Owed(row["blocks"], row["since_s"])
