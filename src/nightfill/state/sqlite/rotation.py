"""What lies under an old key is sealed anew, so that the old key can go."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from nightfill.state.envelope import body_owner, note_owner, question_owner, renewed

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
_AT_ONCE: Final = 500


async def reseal_texts(database: Database, seal: RenewableSeal) -> int:
    """Seal all anew that is not under the current key; how many were. One transaction a table, and one for so many
    answers or questions, of which there may be millions.

    What cannot be opened stays as it is. Raises StateUnavailable when the state file fails.
    """

    def act(connection: sqlite3.Connection, table: str, column: str, owner: str, source: str) -> int:
        # Tables without row ids are told apart by owner, which is unique in each.
        rows = connection.execute(f"SELECT {owner} AS owner, {table}.{column} AS sealed FROM {source}").fetchall()  # noqa: S608
        count = 0
        for row in rows:
            if (fresh := renewed(seal, row["owner"], row["sealed"])) is not None:
                count += connection.execute(
                    f"UPDATE {table} SET {column} = ? WHERE {column} = ?",  # noqa: S608 - constants
                    (fresh, row["sealed"]),
                ).rowcount
        return count

    count = 0
    for table, column, owner, source in _PLACES:
        step = partial(act, table=table, column=column, owner=owner, source=source)
        count += await database.write(step, durable=True, scrub=True)
    for some in (_reseal_answers, _reseal_questions):
        last: int | None = 0
        while last is not None:
            found, last = await database.write(partial(some, seal=seal, after=last), durable=True, scrub=True)
            count += found
    return count


def _reseal_answers(connection: sqlite3.Connection, *, seal: RenewableSeal, after: int) -> tuple[int, int | None]:
    """How many were, and the last one looked at; None at the end."""
    rows = connection.execute(
        "SELECT serial, tenant, key, scope, question, body FROM answers WHERE serial > ? ORDER BY serial LIMIT ?",
        (after, _AT_ONCE),
    ).fetchall()
    count = 0
    for row in rows:
        question, body = row["question"], row["body"]
        if question is not None:
            question = renewed(seal, question_owner(row["tenant"], row["key"], row["scope"]), question)
        body = renewed(seal, body_owner(row["tenant"], row["key"]), body)
        if question is not None or body is not None:
            count += connection.execute(
                "UPDATE answers SET question = coalesce(?, question), body = coalesce(?, body) WHERE serial = ?",
                (question, body, row["serial"]),
            ).rowcount
    return count, rows[-1]["serial"] if rows else None


def _reseal_questions(connection: sqlite3.Connection, *, seal: RenewableSeal, after: int) -> tuple[int, int | None]:
    rows = connection.execute("SELECT * FROM questions WHERE id > ? ORDER BY id LIMIT ?", (after, _AT_ONCE)).fetchall()
    count = 0
    for row in rows:
        fresh = renewed(seal, note_owner(row["tenant"], row["context"]), row["asked"])
        if fresh is not None:
            count += connection.execute("UPDATE questions SET asked = ? WHERE id = ?", (fresh, row["id"])).rowcount
    return count, rows[-1]["id"] if rows else None
