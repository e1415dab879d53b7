"""The book of contexts in SQLite."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from nightfill.contexts.context import (
    Content,
    Context,
    ContextName,
    ContextOptions,
    Fill,
    FillKey,
    FillState,
    Fingerprint,
    Form,
    MessagesSource,
    Outline,
    Signature,
    Source,
    Tenant,
    TextSource,
)
from nightfill.contexts.fingerprint import content_bytes
from nightfill.errors import StateUnavailable
from nightfill.state.envelope import Envelopes, pack, unpack
from nightfill.state.jobs import JobKind
from nightfill.state.sqlite.answers import ANY_OVERTAKEN, OVERTAKEN, delete_in_steps, some_of
from nightfill.state.sqlite.due import look_now
from nightfill.state.sqlite.jobs import cancel_target

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Sequence

    from nightfill.state.seal import TextSeal
    from nightfill.state.sqlite.database import Database

T = TypeVar("T")
_LOG: Final = logging.getLogger(__name__)
_CACHED_TOKENS: Final = 1 << 20
"""Bound of the unpacked token lists kept in memory, by tokens."""
_SOUND: Final = 4096
_AT_ONCE: Final = 500

_CONTEXTS: Final = """SELECT c.*, v.content_bytes FROM contexts c
    JOIN versions v ON v.tenant = c.tenant AND v.fingerprint = c.current"""
_FILLS: Final = "SELECT f.*, t.digest FROM fills f JOIN token_lists t ON t.fill = f.id"
# Two questions, each with its index: one with OR would look at all contexts of the tenant.
_NAMED: Final = """(EXISTS (SELECT 1 FROM contexts WHERE tenant = ?1 AND current = ?2)
    OR EXISTS (SELECT 1 FROM contexts WHERE tenant = ?1 AND distilled = ?2))"""
_ONE_FILL: Final = "f.tenant = ? AND f.fingerprint = ? AND f.form = ? AND f.signature = ?"


class SqliteBook:
    """See `SourceBook`. Reads run on the event loop, in microseconds; `content` opens its text anew each time.

    One row that cannot be opened, damaged or sealed with another key, takes no other with it: a fill is absent then,
    and filled again; a source is not looked at any more, until the context is put again. A content alone is missed, and
    raises StateUnavailable.
    """

    def __init__(self, database: Database, *, seal: TextSeal, clock: Callable[[], float]) -> None:
        self._db = database
        self._texts = Envelopes(seal)
        self._clock = clock
        self._unpacked: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._sound: set[bytes] = set()
        """Digests of token lists that were opened or written here."""
        self._data_version = -1
        self._changes = 0

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
            _note_change(connection)
            return self.context(_one(connection, f"{_CONTEXTS} WHERE c.tenant = ? AND c.name = ?", tenant, name))

        return await self._changed(tenant, name, act)

    async def replace(self, context: Context, *, content: Content, fingerprint: Fingerprint) -> Context | None:
        """See `SourceBook`."""

        def act(connection: sqlite3.Connection) -> Context | None:
            where = (context.tenant, context.name)
            row = _one(connection, f"{_CONTEXTS} WHERE c.tenant = ? AND c.name = ?", *where)
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
            _note_change(connection)
            return self.context(_one(connection, f"{_CONTEXTS} WHERE c.tenant = ? AND c.name = ?", *where))

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
            _note_change(connection)
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
            _note_change(connection)
            return True

        self._unpacked.clear()
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

    async def fill(self, key: FillKey) -> Fill | None:
        """See `ContextBook`."""
        rows = self._db.read(f"{_FILLS} WHERE {_ONE_FILL}", *_columns(key))
        return self._fill(rows[0]) if rows else None

    async def fills(self, tenant: Tenant | None = None) -> list[Fill]:
        """See `ContextBook`."""
        rows = self._db.read(f"{_FILLS} WHERE ?1 IS NULL OR f.tenant = ?1 ORDER BY f.id", tenant)
        found = (self._fill(row) for row in rows)
        return [fill for fill in found if fill is not None]

    async def watched(self) -> list[Context]:
        """See `SourceBook`."""
        return [self.context(row) for row in self._db.read(f"{_CONTEXTS} WHERE c.watched ORDER BY c.name, c.tenant")]

    async def outlines_of(self, tenant: Tenant, *versions: Fingerprint) -> list[Outline]:
        """See `ContextBook`."""
        sql = "SELECT * FROM fills WHERE tenant = ? AND fingerprint = ? ORDER BY id"
        rows = (row for version in versions for row in self._db.read(sql, tenant, version))
        return [one for one in map(self.outline, rows) if one is not None]

    async def outlines(self) -> AsyncIterator[Sequence[Outline]]:
        """See `ContextBook`."""
        after = 0
        while rows := self._db.read("SELECT * FROM fills WHERE id > ? ORDER BY id LIMIT ?", after, _AT_ONCE):
            after = rows[-1]["id"]
            yield [one for one in map(self.outline, rows) if one is not None]
            await asyncio.sleep(0)

    async def put_fill(self, fill: Fill) -> bool:
        """See `ContextBook`."""
        return await self._db.write(lambda connection: self._put_fill(connection, fill))

    async def mark_fill(self, key: FillKey, *, state: FillState, reason: str, stored_tokens: int | None = None) -> bool:
        """See `ContextBook`."""

        def act(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(
                f"""UPDATE fills AS f SET state = ?, reason = ?, stored_tokens = coalesce(?, stored_tokens)
                WHERE {_ONE_FILL}""",  # noqa: S608 - a constant
                (state, reason, stored_tokens, *_columns(key)),
            ).rowcount
            look_now(connection, key.tenant, key.fingerprint, self._clock())
            _note_change(connection)
            return bool(changed)

        return await self._db.write(act)

    async def drop_fill(self, key: FillKey) -> bool:
        """See `ContextBook`."""

        def act(connection: sqlite3.Connection) -> bool:
            sql = f"DELETE FROM fills AS f WHERE {_ONE_FILL}"  # noqa: S608 - a constant
            gone = connection.execute(sql, _columns(key)).rowcount
            look_now(connection, key.tenant, key.fingerprint, self._clock())
            _note_change(connection)
            return bool(gone)

        return await self._db.write(act)

    def changes(self) -> int:
        """See `ContextBook`. Only when some process has written anything is the number itself read again."""
        version = int(self._db.read("PRAGMA data_version")[0][0])
        if version != self._data_version:
            self._changes = int(self._db.read("SELECT number FROM book_changes")[0][0])
            self._data_version = version
        return self._changes

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
        there = _one(
            connection, "SELECT content FROM versions WHERE tenant = ? AND fingerprint = ?", tenant, fingerprint
        )
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

    def _put_fill(self, connection: sqlite3.Connection, fill: Fill) -> bool:
        key = fill.key
        if _one(connection, f"SELECT {_NAMED}", key.tenant, key.fingerprint)[0] == 0:
            return False
        sql = f"SELECT state FROM fills AS f WHERE {_ONE_FILL}"  # noqa: S608 - a constant
        before = _one(connection, sql, *_columns(key))
        if fill.state not in (FillState.FILLING, before and before["state"]):
            look_now(connection, key.tenant, key.fingerprint, self._clock())
        row = connection.execute(
            """INSERT INTO fills (tenant, fingerprint, form, signature, state, total_tokens, stored_tokens, filled_at_s,
                fill_seconds, reason)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (tenant, fingerprint, form, signature) DO UPDATE SET
                state = excluded.state, total_tokens = excluded.total_tokens, stored_tokens = excluded.stored_tokens,
                filled_at_s = excluded.filled_at_s, fill_seconds = excluded.fill_seconds, reason = excluded.reason
            RETURNING id""",
            (
                *_columns(key),
                fill.state,
                fill.total_tokens,
                fill.stored_tokens,
                fill.filled_at_s,
                fill.fill_seconds,
                fill.reason,
            ),
        ).fetchall()[0]
        packed = pack(fill.tokens)
        # The row's name is in it, so that a digest stands for these tokens of this fill alone.
        digest = hashlib.sha256(f"{row['id']}/{key}\0".encode() + packed).digest()
        there = _one(connection, "SELECT digest FROM token_lists WHERE fill = ?", row["id"])
        # One that was never opened may be damaged: then nobody sees the fill until its tokens are written again.
        if there is None or there["digest"] != digest or digest not in self._sound:
            if len(self._sound) >= _SOUND:
                self._sound.clear()
            self._sound.add(digest)
            connection.execute(
                "INSERT OR REPLACE INTO token_lists VALUES (?, ?, ?)",
                (row["id"], digest, self._texts.wrap(str(key), packed)),
            )
        _note_change(connection)
        return True

    def outline(self, row: Any) -> Outline | None:
        """A row of `fills`; None when it is from before its tokens were counted, and they cannot be opened."""
        key, total = _key(row), row["total_tokens"]
        if total is None:
            rows = self._db.read(f"{_FILLS} WHERE f.id = ?", row["id"])
            tokens = self._tokens(row["id"], rows[0]["digest"], key) if rows else None
            if tokens is None:
                return None
            total = len(tokens)
        return Outline(
            key=key,
            state=FillState(row["state"]),
            total_tokens=total,
            stored_tokens=row["stored_tokens"],
            filled_at_s=row["filled_at_s"],
            fill_seconds=row["fill_seconds"],
            reason=row["reason"],
        )

    def _fill(self, row: Any) -> Fill | None:
        key = _key(row)
        tokens = self._tokens(row["id"], row["digest"], key)
        if tokens is None:
            return None
        return Fill(
            key=key,
            state=FillState(row["state"]),
            tokens=tokens,
            stored_tokens=row["stored_tokens"],
            filled_at_s=row["filled_at_s"],
            fill_seconds=row["fill_seconds"],
            reason=row["reason"],
        )

    def _tokens(self, fill: int, digest: bytes, key: FillKey) -> tuple[int, ...] | None:
        tokens = self._unpacked.get(digest)
        if tokens is not None:
            self._unpacked.move_to_end(digest)
            return tokens
        rows = self._db.read("SELECT tokens FROM token_lists WHERE fill = ? AND digest = ?", fill, digest)
        if not rows:  # replaced or dropped since the row of the fill was read
            return None
        packed = self._texts.opened(str(key), rows[0]["tokens"])
        if packed is None:
            return None
        self._sound.add(digest)
        tokens = self._unpacked[digest] = unpack(packed)
        held = sum(map(len, self._unpacked.values()))
        while held > _CACHED_TOKENS and len(self._unpacked) > 1:
            held -= len(self._unpacked.popitem(last=False)[1])
        return tokens

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


def _key(row: Any) -> FillKey:
    return FillKey(
        tenant=Tenant(row["tenant"]),
        fingerprint=Fingerprint(row["fingerprint"]),
        form=Form(row["form"]),
        signature=Signature(row["signature"]),
    )


def _columns(key: FillKey) -> tuple[str, str, str, str]:
    return key.tenant, key.fingerprint, key.form, key.signature


def _one(connection: sqlite3.Connection, sql: str, *values: object) -> Any:
    rows = connection.execute(sql, values).fetchall()
    return rows[0] if rows else None


def _versions(connection: sqlite3.Connection, tenant: Tenant, name: ContextName) -> list[str]:
    """The current version of the context and the distilled one, if they are there."""
    row = _one(connection, "SELECT current, distilled FROM contexts WHERE tenant = ? AND name = ?", tenant, name)
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
            f"DELETE FROM versions WHERE tenant = ?1 AND fingerprint = ?2 AND NOT {_NAMED}",  # noqa: S608 - a constant
            (tenant, fingerprint),
        ).rowcount
        if dropped:
            for kind in (JobKind.FILL, JobKind.DISTIL):
                cancel_target(connection, kind, f"{tenant}/{fingerprint}/", now_s)


def _note_change(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE book_changes SET number = number + 1")
