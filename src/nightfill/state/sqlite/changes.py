"""The number of changes of the book in SQLite, by which readers see that what they know of it is old."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

    from nightfill.state.sqlite.database import Database


class SqliteChanges:
    """Of all processes."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._data_version = -1
        self._number = 0

    def number(self) -> int:
        """See `ContextBook.changes`. Only when some process has written anything is the number itself read again."""
        version = int(self._db.read("PRAGMA data_version")[0][0])
        if version != self._data_version:
            self._number = int(self._db.read("SELECT number FROM book_changes")[0][0])
            self._data_version = version
        return self._number


def note_change(connection: sqlite3.Connection) -> None:
    """As part of the transition that changes the book."""
    connection.execute("UPDATE book_changes SET number = number + 1")
