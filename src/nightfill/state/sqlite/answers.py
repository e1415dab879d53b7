"""Stored answers and the questions that were asked, in SQLite.

Rows of answers that rest on a version are only found while their context has it, so that a change of the context takes
no longer for more of them: what is left of them then goes in steps, and at the latest with `prune`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.contexts.context import ContextName, Fingerprint, Tenant
from nightfill.state.answers import (
    Answer,
    AnswerBounds,
    AnswerCounts,
    AnswerKey,
    AnswerNote,
    AnswerScope,
    Asked,
    Origin,
)
from nightfill.state.envelope import Envelopes, body_owner, note_owner, question_owner

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from nightfill.state.seal import TextSeal
    from nightfill.state.sqlite.database import Database

AT_ONCE: Final = 500
"""Answers that one transaction removes."""
OVERTAKEN: Final = """tenant = ?1 AND context = ?2 AND fingerprint NOT IN (
    SELECT current FROM contexts WHERE tenant = ?1 AND name = ?2 UNION ALL
    SELECT distilled FROM contexts WHERE tenant = ?1 AND name = ?2 AND distilled IS NOT NULL)"""
"""Answers of a context to versions that it has no more."""
ANY_OVERTAKEN: Final = f"SELECT 1 FROM answers WHERE {OVERTAKEN} LIMIT 1"  # noqa: S608 - a constant
_EVICTED_AT_ONCE: Final = 100
"""By one that is put in; where bounds were lowered, the next ones go on."""
_COLUMNS: Final = "key, scope, tenant, context, fingerprint, model, origin, question, body, at_s, ttl_s, used_s"


async def delete_in_steps(database: Database, where: str, *values: object) -> int:
    """Remove answers in transactions that are short, for others wait until one ends; how many."""
    sql = some_of(where)
    deleted = 0
    while some := await database.write(lambda connection: connection.execute(sql, values).rowcount):
        deleted += some
    if deleted:
        await database.write(lambda _: None, durable=True, scrub=True)
    return deleted


def some_of(where: str) -> str:
    """The statement that removes as many as one transaction may."""
    return f"DELETE FROM answers WHERE serial IN (SELECT serial FROM answers WHERE {where} LIMIT {AT_ONCE})"  # noqa: S608


class SqliteAnswerBook:
    """See `AnswerBook`. `get` runs on the event loop: microseconds for a miss, with the body's decryption for a hit."""

    def __init__(self, database: Database, *, seal: TextSeal, bounds: AnswerBounds, clock: Callable[[], float]) -> None:
        self._db = database
        self._texts = Envelopes(seal)
        self._bounds = bounds
        self._clock = clock

    async def put(self, answer: Answer) -> bool:
        """See `AnswerBook`."""
        key, tenant, context = answer.key, answer.tenant, answer.context
        question = self._texts.wrap(question_owner(tenant, key, answer.scope), answer.question.encode())
        body = self._texts.wrap(body_owner(tenant, key), answer.body)
        if len(question) + len(body) > self._bounds.bytes or self._bounds.answers < 1:
            return False

        def act(connection: sqlite3.Connection) -> bool:
            now_s = self._clock()
            if (
                context is not None
                and not connection.execute(
                    "SELECT 1 FROM contexts WHERE tenant = ? AND name = ? AND ? IN (current, distilled)",
                    (tenant, context, answer.fingerprint),
                ).fetchall()
            ):
                return False
            connection.execute("DELETE FROM answers WHERE key = ?", (key,))
            # Numbers grow with time too: a power cut may undo the last ones, and an index have seen them.
            connection.execute(
                f"""INSERT INTO answers (serial, {_COLUMNS}) SELECT max(coalesce(max(seq), 0) + 1, ?),
                    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM sqlite_sequence WHERE name = 'answers'""",  # noqa: S608
                (
                    int(now_s * 1e6),
                    key,
                    answer.scope,
                    tenant,
                    context or "",
                    answer.fingerprint or "",
                    answer.model,
                    answer.origin,
                    question if answer.question else None,
                    body,
                    answer.at_s or now_s,
                    answer.ttl_s,
                    now_s,
                ),
            )
            if context is not None:
                connection.execute(
                    """INSERT INTO answer_counts VALUES (?, ?, ?, 1, 0, 0)
                    ON CONFLICT (tenant, context, origin) DO UPDATE SET stored = stored + 1""",
                    (tenant, context, answer.origin),
                )
            self._keep_bounds(connection, tenant)
            return True

        return await self._db.write(act)

    async def get(self, key: AnswerKey) -> Answer | None:
        """See `AnswerBook`."""
        rows = self._db.read(
            """SELECT a.* FROM answers a LEFT JOIN contexts c ON c.tenant = a.tenant AND c.name = a.context
            WHERE a.key = ? AND a.until_s >= ? AND (a.context = '' OR a.fingerprint IN (c.current, c.distilled))""",
            key,
            self._clock(),
        )
        return self._answer(rows[0]) if rows else None

    async def served(self, keys: Sequence[AnswerKey]) -> None:
        """See `AnswerBook`."""

        def act(connection: sqlite3.Connection) -> None:
            now_s = self._clock()
            for key in keys:
                for row in connection.execute(
                    """UPDATE answers SET used_s = ?, uses = uses + 1 WHERE key = ?
                    RETURNING tenant, context, origin, uses""",
                    (now_s, key),
                ).fetchall():
                    connection.execute(
                        """UPDATE answer_counts SET uses = uses + 1, used = used + (? = 1)
                        WHERE tenant = ? AND context = ? AND origin = ?""",
                        (row["uses"], row["tenant"], row["context"], row["origin"]),
                    )

        await self._db.write(act)

    async def drop(self, tenant: Tenant, *, context: ContextName | None = None) -> int:
        """See `AnswerBook`."""

        if context is None:
            return await delete_in_steps(self._db, "tenant = ?", tenant)
        return await delete_in_steps(self._db, "tenant = ? AND context = ?", tenant, context)

    async def after(self, serial: int, *, limit: int = 1000) -> list[AnswerNote]:
        """See `AnswerBook`. Read and opened in a thread."""
        return await asyncio.to_thread(self._after, serial, limit)

    async def gone(self, keys: Sequence[AnswerKey]) -> list[AnswerKey]:
        """See `AnswerBook`."""
        there: set[bytes] = set()
        for begin in range(0, len(keys), AT_ONCE):
            some = keys[begin : begin + AT_ONCE]
            sql = f"SELECT key FROM answers WHERE key IN ({', '.join('?' * len(some))})"  # noqa: S608 - marks alone
            there.update(row["key"] for row in self._db.read(sql, *some))
        return [key for key in keys if key not in there]

    async def counts(self, tenant: Tenant, context: ContextName) -> dict[Origin, AnswerCounts]:
        """See `AnswerBook`."""
        rows = self._db.read("SELECT * FROM answer_counts WHERE tenant = ? AND context = ?", tenant, context)
        return {
            Origin(row["origin"]): AnswerCounts(stored=row["stored"], used=row["used"], uses=row["uses"])
            for row in rows
        }

    async def prune(self) -> int:
        """See `AnswerBook`."""
        dropped = await delete_in_steps(self._db, "until_s < ?", self._clock())
        version: tuple[str, ...] = ("", "", "")
        while rows := self._db.read(
            """SELECT a.tenant, a.context, a.fingerprint, a.context = '' OR EXISTS (SELECT 1 FROM contexts c
                WHERE c.tenant = a.tenant AND c.name = a.context AND a.fingerprint IN (c.current, c.distilled)) AS known
            FROM answers a WHERE (a.tenant, a.context, a.fingerprint) > (?, ?, ?)
            ORDER BY a.tenant, a.context, a.fingerprint LIMIT 1""",
            *version,
        ):
            *version_of, known = rows[0]
            version = tuple(version_of)
            if not known:
                dropped += await delete_in_steps(self._db, "tenant = ? AND context = ? AND fingerprint = ?", *version)
            await asyncio.sleep(0)
        return dropped

    def _keep_bounds(self, connection: sqlite3.Connection, tenant: Tenant) -> None:
        most = self._bounds
        limits = ((0, "", most.answers, most.bytes), (1, tenant, most.tenant_answers, None))
        for level, whose, answers, size in limits:
            for _ in range(_EVICTED_AT_ONCE):
                if not connection.execute(
                    """SELECT 1 FROM answer_sums WHERE level = ?1 AND tenant = ?2
                    AND (answers > coalesce(?3, answers) OR bytes > coalesce(?4, bytes))""",
                    (level, whose, answers, size),
                ).fetchall():
                    break
                where = "WHERE tenant = ? " if level else ""
                connection.execute(
                    f"DELETE FROM answers WHERE serial = (SELECT serial FROM answers {where}ORDER BY used_s LIMIT 1)",  # noqa: S608
                    (whose,) if level else (),
                )

    def _answer(self, row: Any) -> Answer | None:
        key, tenant, scope = AnswerKey(row["key"]), Tenant(row["tenant"]), AnswerScope(row["scope"])
        question = self._question(row)
        if question is None:
            return None
        body = self._texts.opened(body_owner(tenant, key), row["body"])
        if body is None:
            return None
        return Answer(
            key=key,
            scope=scope,
            tenant=tenant,
            context=ContextName(row["context"]) or None,
            fingerprint=Fingerprint(row["fingerprint"]) or None,
            model=row["model"],
            question=question,
            body=body,
            origin=Origin(row["origin"]),
            at_s=row["at_s"],
            ttl_s=row["ttl_s"],
        )

    def _after(self, serial: int, limit: int) -> list[AnswerNote]:
        rows = self._db.read(
            """SELECT serial, key, scope, tenant, question FROM answers
            WHERE serial > ? AND question IS NOT NULL ORDER BY serial LIMIT ?""",
            serial,
            limit,
        )
        # One that cannot be opened is told without its words, or a batch of such would seem to be the end.
        return [
            AnswerNote(
                serial=row["serial"],
                key=AnswerKey(row["key"]),
                scope=AnswerScope(row["scope"]),
                question=self._question(row) or "",
            )
            for row in rows
        ]

    def _question(self, row: Any) -> str | None:
        if row["question"] is None:
            return ""
        plain = self._texts.opened(question_owner(row["tenant"], row["key"], row["scope"]), row["question"])
        return None if plain is None else plain.decode()


class SqliteQuestionLog:
    """See `QuestionLog`."""

    def __init__(self, database: Database, *, seal: TextSeal, most: int) -> None:
        self._db = database
        self._texts = Envelopes(seal)
        self._most = most

    async def note(self, tenant: Tenant, context: ContextName, questions: Sequence[Asked]) -> None:
        """See `QuestionLog`."""
        kept = questions[-self._most :] if self._most else ()
        owner = note_owner(tenant, context)
        rows = [
            (tenant, context, self._texts.wrap(owner, msgspec.msgpack.encode((asked.at_s, asked.text))))
            for asked in kept
        ]
        if not rows:
            return

        def act(connection: sqlite3.Connection) -> None:
            connection.executemany(
                """INSERT INTO questions (tenant, context, asked)
                SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM contexts WHERE tenant = ?1 AND name = ?2)""",
                rows,
            )
            connection.execute(
                """DELETE FROM questions WHERE tenant = ?1 AND context = ?2 AND id <=
                    (SELECT id FROM questions WHERE tenant = ?1 AND context = ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3)""",
                (tenant, context, self._most),
            )

        await self._db.write(act)

    async def recent(self, tenant: Tenant, context: ContextName, *, limit: int = 1000) -> list[Asked]:
        """See `QuestionLog`. Read and opened in a thread."""
        return await asyncio.to_thread(self._recent, tenant, context, limit)

    def _recent(self, tenant: Tenant, context: ContextName, limit: int) -> list[Asked]:
        rows = self._db.read(
            "SELECT asked FROM questions WHERE tenant = ? AND context = ? ORDER BY id DESC LIMIT ?",
            tenant,
            context,
            limit,
        )
        opened = (self._texts.opened(note_owner(tenant, context), row["asked"]) for row in rows)
        found = [msgspec.msgpack.decode(plain, type=tuple[float, str]) for plain in opened if plain is not None]
        return [Asked(at_s=at_s, text=text) for at_s, text in found]
