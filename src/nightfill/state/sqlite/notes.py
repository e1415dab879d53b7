"""The engine book in SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from nightfill.state.engines import EngineNote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nightfill.state.sqlite.database import Database


class SqliteEngineBook:
    """See `EngineBook`."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._db = database
        self._clock = clock

    async def put(self, name: str, body: Mapping[str, str | int | bool]) -> None:
        """See `EngineBook`."""
        values = (name, msgspec.json.encode(dict(body)), self._clock())
        await self._db.write(
            lambda connection: connection.execute("INSERT OR REPLACE INTO engines VALUES (?, ?, ?)", values).rowcount
        )

    async def get(self, name: str) -> EngineNote | None:
        """See `EngineBook`."""
        rows = self._db.read("SELECT * FROM engines WHERE name = ?", name)
        return _note(rows[0]) if rows else None

    async def notes(self) -> list[EngineNote]:
        """See `EngineBook`."""
        return [_note(row) for row in self._db.read("SELECT * FROM engines ORDER BY name")]

    async def forget(self, name: str) -> bool:
        """See `EngineBook`."""
        sql = "DELETE FROM engines WHERE name = ?"
        return bool(await self._db.write(lambda connection: connection.execute(sql, (name,)).rowcount))


def _note(row: Any) -> EngineNote:
    body = msgspec.json.decode(row["body"], type=dict[str, str | int | bool])
    return EngineNote(name=row["name"], body=body, seen_at_s=row["seen_at_s"])
