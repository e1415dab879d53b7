"""Texts, sources and token lists under an old key are sealed anew, so that the old key can go."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from nightfill.errors import StateUnavailable
from nightfill.state.envelope import unwrap, wrap

if TYPE_CHECKING:
    import sqlite3

    from nightfill.state.seal import RenewableSeal
    from nightfill.state.sqlite.database import Database

_PLACES: Final = (
    ("versions", "content", "tenant || '/' || fingerprint", "versions"),
    ("contexts", "source", "tenant || '/' || name", "contexts"),
    (
        "token_lists",
        "tokens",
        "f.tenant || '/' || f.fingerprint || '/' || f.form || '/' || f.signature",
        "token_lists JOIN fills f ON f.id = token_lists.fill",
    ),
)
"""Table, column, the name that a row is sealed for, and where to read both."""


async def reseal_texts(database: Database, seal: RenewableSeal) -> int:
    """Seal all anew that is not under the current key; how many were. One transaction a table.

    What cannot be opened stays as it is. Raises StateUnavailable when the state file fails.
    """

    def act(connection: sqlite3.Connection, table: str, column: str, owner: str, source: str) -> int:
        # Tables without row ids are told apart by owner, which is unique in each.
        rows = connection.execute(f"SELECT {owner} AS owner, {table}.{column} AS sealed FROM {source}").fetchall()  # noqa: S608
        renewed = 0
        for row in rows:
            if seal.current(row["sealed"]):
                continue
            try:
                fresh = wrap(seal, row["owner"], unwrap(seal, row["owner"], row["sealed"]))
            except StateUnavailable:
                continue
            renewed += connection.execute(
                f"UPDATE {table} SET {column} = ? WHERE {column} = ?",  # noqa: S608 - constants
                (fresh, row["sealed"]),
            ).rowcount
        return renewed

    renewed = 0
    for table, column, owner, source in _PLACES:
        step = partial(act, table=table, column=column, owner=owner, source=source)
        renewed += await database.write(step, durable=True, scrub=True)
    return renewed
