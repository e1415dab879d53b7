"""Blocks that are to be deleted and may still lie in a tier, so that no restart forgets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

    from nightfill.state.sqlite.database import Database


class Owed(NamedTuple):
    """What is still to be deleted."""

    blocks: int
    since_s: float | None
    """When the oldest of them was to go, Unix seconds; None where there is none."""


class SqliteDeletions:
    """Names of blocks, which tell nothing of what is in them. Raises StateUnavailable when the state file fails."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._db = database
        self._clock = clock

    async def owe(self, keys: Iterable[bytes]) -> None:
        """Write down that these are to go. Survives a power cut."""
        rows = [(key, self._clock()) for key in keys]

        def act(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR IGNORE INTO deletions VALUES (?, ?)", rows)

        await self._db.write(act, durable=True)

    async def settle(self, keys: Iterable[bytes]) -> None:
        """They are gone from all tiers, or wanted again."""
        rows = [(key,) for key in keys]

        def act(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM deletions WHERE key = ?", rows)

        await self._db.write(act)

    def keys(self, *, limit: int) -> list[bytes]:
        """The oldest ones."""
        return [row["key"] for row in self._db.read("SELECT key FROM deletions ORDER BY since_s LIMIT ?", limit)]

    def owed(self) -> Owed:
        """How many there are, and since when. Quick, from any thread."""
        row = self._db.read("SELECT count(*) AS blocks, min(since_s) AS since_s FROM deletions")[0]
        return Owed(row["blocks"], row["since_s"])
