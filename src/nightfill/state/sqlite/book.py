"""The book of contexts in SQLite."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from nightfill.contexts.context import (
    Content,
    Context,
    ContextName,
    ContextOptions,
    Fingerprint,
    Form,
    MessagesSource,
    Source,
    Tenant,
    TextSource,
)
from nightfill.contexts.fingerprint import content_bytes
from nightfill.errors import StateUnavailable
from nightfill.state.envelope import Envelopes
from nightfill.state.jobs import JobKind
from nightfill.state.sqlite.answers import ANY_OVERTAKEN, OVERTAKEN, delete_in_steps, some_of
from nightfill.state.sqlite.changes import SqliteChanges, note_change
from nightfill.state.sqlite.due import look_now
from nightfill.state.sqlite.fills import NAMED
from nightfill.state.sqlite.jobs import cancel_target

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Sequence

    from nightfill.contexts.context import Fill, FillKey, FillState, Outline
    from nightfill.state.seal import TextSeal
    from nightfill.state.sqlite.database import Database
    from nightfill.state.sqlite.fills import SqliteFills

T = TypeVar("T")
_LOG: Final = logging.getLogger(__name__)
_CONTEXTS: Final = """SELECT c.*, v.content_bytes FROM contexts c
    JOIN versions v ON v.tenant = c.tenant AND v.fingerprint = c.current"""


class SqliteBook:
    """See `SourceBook`. Reads run on the event loop, in microseconds; `content` opens its text anew each time.

    One row that cannot be opened, damaged or sealed with another key, takes no other with it: a fill is absent then,
    and filled again; a source is not looked at any more, until the context is put again. A content alone is missed, and
    raises StateUnavailable.
    """

    def __init__(self, database: Database, fills: SqliteFills, *, seal: TextSeal, clock: Callable[[], float]) -> None:
        self._db = database
        self._fills = fills
        self._texts = Envelopes(seal)
        self._clock = clock
        self._changes = SqliteChanges(database)

    async def put(
        self,
        *,
        tenant: Tenant,
        name: ContextName,
        source: Source,
        content: Content,
        fingerprint: Fingerprint,
        forms: Sequence[Form],
        pinned: bool = False,
        ttl_s: float | None = None,
        user: str = "",
        options: ContextOptions | None = None,
    ) -> Context:
        """See `ContextBook`."""

        def act(connection: sqlite3.Connection) -> Context:
            now_s = self._clock()
            before = _versions(connection, tenant, name)
            self._put_version(connection, tenant, fingerprint, content, now_s)
            connection.execute(
                """INSERT INTO contexts
                    (tenant, name, source, forms, pinned, ttl_s, current, created_at_s, updated_at_s, checked_at_s,
                    user, options, watched)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, ?8, ?9, coalesce(?10, '{}'), ?11)
                ON CONFLICT (tenant, name) DO UPDATE SET
                    source = excluded.source, forms = excluded.forms, pinned = excluded.pinned, ttl_s = excluded.ttl_s,
                    user = excluded.user, options = coalesce(?10, options), watched = excluded.watched,
                    updated_at_s = iif(current = excluded.current, updated_at_s, excluded.updated_at_s),
                    distilled = iif(current = excluded.current, distilled, NULL),
                    current = excluded.current, checked_at_s = excluded.checked_at_s""",
                (
                    tenant,
                    name,
                    self._texts.wrap(f"{tenant}/{name}", msgspec.json.encode(source)),
                    ",".join(forms),
                    pinned,
                    ttl_s,
                    fingerprint,
                    now_s,
                    user,
                    None if options is None else msgspec.json.encode(options).decode(),
                    not isinstance(source, TextSource | MessagesSource),
                ),
            )
            _drop_unnamed(connection, tenant, name, before, now_s)
            look_now(connection, tenant, fingerprint, now_s)
            note_change(connection)
            return self.context(_read(connection, tenant, name))

        return await self._changed(tenant, name, act)

    async def replace(self, context: Context, *, content: Content, fingerprint: Fingerprint) -> Context | None:
        """See `SourceBook`."""

        def act(connection: sqlite3.Connection) -> Context | None:
            where = (context.tenant, context.name)
            row = _read(connection, *where)
            if row is None:
                return None
            there = self.context(row)
            if (there.current, there.source) != (context.current, context.source):
                return None
            now_s = self._clock()
            before = _versions(connection, *where)
            self._put_version(connection, context.tenant, fingerprint, content, now_s)
            connection.execute(
                """UPDATE contexts SET current = ?1, checked_at_s = ?2,
                    updated_at_s = iif(current = ?1, updated_at_s, ?2), distilled = iif(current = ?1, distilled, NULL)
                WHERE tenant = ?3 AND name = ?4""",
                (fingerprint, now_s, *where),
            )
            _drop_unnamed(connection, *where, before, now_s)
            look_now(connection, context.tenant, fingerprint, now_s)
            note_change(connection)
            return self.context(_read(connection, *where))

        return await self._changed(context.tenant, context.name, act)

    async def put_distilled(self, context: Context, *, content: Content, fingerprint: Fingerprint) -> bool:
        """See `ContextBook`."""

        def act(connection: sqlite3.Connection) -> bool:
            where = (context.tenant, context.name)
            before = _versions(connection, *where)
            if before[:1] != [context.current]:
                return False
            now_s = self._clock()
            self._put_version(connection, context.tenant, fingerprint, content, now_s)
            connection.execute("UPDATE contexts SET distilled = ? WHERE tenant = ? AND name = ?", (fingerprint, *where))
            _drop_unnamed(connection, *where, before, now_s)
            look_now(connection, context.tenant, fingerprint, now_s)
            note_change(connection)
            return True

        return await self._changed(context.tenant, context.name, act)

    async def get(self, tenant: Tenant, name: ContextName) -> Context | None:
        """See `ContextBook`."""
        rows = self._db.read(f"{_CONTEXTS} WHERE c.tenant = ? AND c.name = ?", tenant, name)
        return self.context(rows[0]) if rows else None

    async def contexts(self, tenant: Tenant | None = None) -> list[Context]:
        """See `ContextBook`."""
        rows = self._db.read(f"{_CONTEXTS} WHERE ?1 IS NULL OR c.tenant = ?1 ORDER BY c.name, c.tenant", tenant)
        return [self.context(row) for row in rows]

    async def delete(self, tenant: Tenant, name: ContextName) -> bool:
        """See `ContextBook`."""

        def act(connection: sqlite3.Connection) -> bool:
            before = _versions(connection, tenant, name)
            if not before:
                return False
            connection.execute("DELETE FROM contexts WHERE tenant = ? AND name = ?", (tenant, name))
            _drop_unnamed(connection, tenant, name, before, self._clock())
            note_change(connection)
            return True

        self._fills.forget()
        return await self._changed(tenant, name, act)

    async def content(self, tenant: Tenant, fingerprint: Fingerprint) -> Content | None:
        """See `ContextBook`."""
        rows = self._db.read("SELECT content FROM versions WHERE tenant = ? AND fingerprint = ?", tenant, fingerprint)
        if not rows:
            return None
        plain = self._texts.unwrap(f"{tenant}/{fingerprint}", rows[0]["content"])
        found: Content = msgspec.msgpack.decode(plain, type=Content)
        return found

    async def checked(self, tenant: Tenant, name: ContextName) -> None:
        """See `ContextBook`."""
        values = (self._clock(), tenant, name)
        await self._db.write(
            lambda c: c.execute("UPDATE contexts SET checked_at_s = ? WHERE tenant = ? AND name = ?", values).rowcount
        )

    async def is_empty(self) -> bool:
        """See `ContextBook`."""
        return not self._db.read("SELECT EXISTS (SELECT 1 FROM contexts)")[0][0]

    async def tenants(self) -> list[Tenant]:
        """See `ContextBook`."""
        rows = self._db.read(
            """WITH RECURSIVE t (tenant) AS (SELECT min(tenant) FROM contexts
                UNION ALL SELECT (SELECT min(tenant) FROM contexts WHERE tenant > t.tenant) FROM t WHERE tenant NOTNULL)
            SELECT tenant FROM t WHERE tenant NOTNULL"""
        )
        return [Tenant(row["tenant"]) for row in rows]

    async def watched(self) -> list[Context]:
        """See `SourceBook`."""
        return [self.context(row) for row in self._db.read(f"{_CONTEXTS} WHERE c.watched ORDER BY c.name, c.tenant")]

    async def fill(self, key: FillKey) -> Fill | None:
        """See `ContextBook`."""
        return await self._fills.get(key)

    async def fills(self, tenant: Tenant | None = None) -> list[Fill]:
        """See `ContextBook`."""
        return await self._fills.all(tenant)

    async def outlines_of(self, tenant: Tenant, *versions: Fingerprint) -> list[Outline]:
        """See `ContextBook`."""
        return await self._fills.outlines_of(tenant, *versions)

    def outlines(self) -> AsyncIterator[Sequence[Outline]]:
        """See `ContextBook`."""
        return self._fills.outlines()

    async def put_fill(self, fill: Fill) -> bool:
        """See `ContextBook`."""
        return await self._fills.put(fill)

    async def mark_fill(self, key: FillKey, *, state: FillState, reason: str, stored_tokens: int | None = None) -> bool:
        """See `ContextBook`."""
        return await self._fills.mark(key, state=state, reason=reason, stored_tokens=stored_tokens)

    async def drop_fill(self, key: FillKey) -> bool:
        """See `ContextBook`."""
        return await self._fills.drop(key)

    def changes(self) -> int:
        """See `ContextBook`."""
        return self._changes.number()

    async def _changed(self, tenant: Tenant, name: ContextName, act: Callable[[sqlite3.Connection], T]) -> T:
        outcome = await self._db.write(act, durable=True, scrub=True)
        try:
            if self._db.read(ANY_OVERTAKEN, tenant, name):
                await delete_in_steps(self._db, OVERTAKEN, tenant, name)
        except StateUnavailable as exc:
            # The change itself is done, and nobody is given these any more.
            _LOG.warning("answers to an old version are removed later: %s", exc)
        return outcome

    def _put_version(
        self, connection: sqlite3.Connection, tenant: Tenant, fingerprint: Fingerprint, content: Content, now_s: float
    ) -> None:
        owner = f"{tenant}/{fingerprint}"
        there = connection.execute(
            "SELECT content FROM versions WHERE tenant = ? AND fingerprint = ?", (tenant, fingerprint)
        ).fetchone()
        if there is None:
            sealed = self._texts.wrap(owner, msgspec.msgpack.encode(content))
            connection.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?)",
                (tenant, fingerprint, sealed, content_bytes(content), now_s),
            )
        elif self._texts.opened(owner, there["content"]) is None:
            # Here is what it was.
            connection.execute(
                "UPDATE versions SET content = ? WHERE tenant = ? AND fingerprint = ?",
                (self._texts.wrap(owner, msgspec.msgpack.encode(content)), tenant, fingerprint),
            )

    def context(self, row: Any) -> Context:
        """A row of `contexts`, with the bytes of its version."""
        encoded = self._texts.opened(f"{row['tenant']}/{row['name']}", row["source"])
        try:
            source: Source = TextSource() if encoded is None else msgspec.json.decode(encoded, type=Source)
            options = msgspec.json.decode(row["options"], type=ContextOptions)
        except msgspec.MsgspecError as exc:
            raise StateUnavailable(f"context {row['name']}: its source or options cannot be read: {exc}") from exc
        return Context(
            tenant=Tenant(row["tenant"]),
            name=ContextName(row["name"]),
            source=source,
            forms=tuple(Form(form) for form in row["forms"].split(",") if form),
            pinned=bool(row["pinned"]),
            ttl_s=row["ttl_s"],
            current=Fingerprint(row["current"]),
            content_bytes=row["content_bytes"],
            created_at_s=row["created_at_s"],
            updated_at_s=row["updated_at_s"],
            checked_at_s=row["checked_at_s"],
            user=row["user"],
            options=options,
            distilled=None if row["distilled"] is None else Fingerprint(row["distilled"]),
        )


def _read(connection: sqlite3.Connection, tenant: Tenant, name: ContextName) -> Any:
    return connection.execute(f"{_CONTEXTS} WHERE c.tenant = ? AND c.name = ?", (tenant, name)).fetchone()


def _versions(connection: sqlite3.Connection, tenant: Tenant, name: ContextName) -> list[str]:
    """The current version of the context and the distilled one, if they are there."""
    sql = "SELECT current, distilled FROM contexts WHERE tenant = ? AND name = ?"
    row = connection.execute(sql, (tenant, name)).fetchone()
    return [] if row is None else [fingerprint for fingerprint in row if fingerprint is not None]


def _drop_unnamed(
    connection: sqlite3.Connection, tenant: Tenant, name: ContextName, before: Sequence[str], now_s: float
) -> None:
    """Of the versions that the context had until now, drop its answers to those it has no more, and those that no other
    context has, with the jobs to fill them: fills and token lists go by their foreign keys.
    """
    gone = set(before).difference(_versions(connection, tenant, name))
    if gone:
        connection.execute(some_of(OVERTAKEN), (tenant, name))
    for fingerprint in gone:
        dropped = connection.execute(
            f"DELETE FROM versions WHERE tenant = ?1 AND fingerprint = ?2 AND NOT {NAMED}",  # noqa: S608 - a constant
            (tenant, fingerprint),
        ).rowcount
        if dropped:
            for kind in (JobKind.FILL, JobKind.DISTIL):
                cancel_target(connection, kind, f"{tenant}/{fingerprint}/", now_s)
