"""The fills of the book of contexts in SQLite, with their token lists."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from nightfill.contexts.context import Fill, FillKey, FillState, Fingerprint, Form, Outline, Signature, Tenant
from nightfill.state.envelope import Envelopes, pack, unpack
from nightfill.state.sqlite.changes import note_change
from nightfill.state.sqlite.due import look_now

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Sequence

    from nightfill.state.seal import TextSeal
    from nightfill.state.sqlite.database import Database

_CACHED_TOKENS: Final = 1 << 20
"""Bound of the unpacked token lists kept in memory, by tokens."""
_SOUND: Final = 4096
_AT_ONCE: Final = 500

# Two questions, each with its index: one with OR would look at all contexts of the tenant.
NAMED: Final = """(EXISTS (SELECT 1 FROM contexts WHERE tenant = ?1 AND current = ?2)
    OR EXISTS (SELECT 1 FROM contexts WHERE tenant = ?1 AND distilled = ?2))"""
"""Whether a context of the tenant has the version."""
_FILLS: Final = "SELECT f.*, t.digest FROM fills f JOIN token_lists t ON t.fill = f.id"
_ONE_FILL: Final = "f.tenant = ? AND f.fingerprint = ? AND f.form = ? AND f.signature = ?"


class SqliteFills:
    """The part of `ContextBook` that is about fills. Reads run on the event loop, in microseconds.

    A fill whose tokens cannot be opened, damaged or sealed with another key, is absent.
    """

    def __init__(self, database: Database, *, seal: TextSeal, clock: Callable[[], float]) -> None:
        self._db = database
        self._texts = Envelopes(seal)
        self._clock = clock
        self._unpacked: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._sound: set[bytes] = set()
        """Digests of token lists that were opened or written here."""

    async def get(self, key: FillKey) -> Fill | None:
        """See `ContextBook.fill`."""
        rows = self._db.read(f"{_FILLS} WHERE {_ONE_FILL}", *_columns(key))
        return self._fill(rows[0]) if rows else None

    async def all(self, tenant: Tenant | None) -> list[Fill]:
        """See `ContextBook.fills`."""
        rows = self._db.read(f"{_FILLS} WHERE ?1 IS NULL OR f.tenant = ?1 ORDER BY f.id", tenant)
        found = (self._fill(row) for row in rows)
        return [fill for fill in found if fill is not None]

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

    async def put(self, fill: Fill) -> bool:
        """See `ContextBook.put_fill`."""
        return await self._db.write(lambda connection: self._put(connection, fill))

    async def mark(self, key: FillKey, *, state: FillState, reason: str, stored_tokens: int | None) -> bool:
        """See `ContextBook.mark_fill`."""

        def act(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(
                f"""UPDATE fills AS f SET state = ?, reason = ?, stored_tokens = coalesce(?, stored_tokens)
                WHERE {_ONE_FILL}""",  # noqa: S608 - a constant
                (state, reason, stored_tokens, *_columns(key)),
            ).rowcount
            look_now(connection, key.tenant, key.fingerprint, self._clock())
            note_change(connection)
            return bool(changed)

        return await self._db.write(act)

    async def drop(self, key: FillKey) -> bool:
        """See `ContextBook.drop_fill`."""

        def act(connection: sqlite3.Connection) -> bool:
            sql = f"DELETE FROM fills AS f WHERE {_ONE_FILL}"  # noqa: S608 - a constant
            gone = connection.execute(sql, _columns(key)).rowcount
            look_now(connection, key.tenant, key.fingerprint, self._clock())
            note_change(connection)
            return bool(gone)

        return await self._db.write(act)

    def forget(self) -> None:
        """Keep no token list in memory."""
        self._unpacked.clear()

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

    def _put(self, connection: sqlite3.Connection, fill: Fill) -> bool:
        key = fill.key
        if not connection.execute(f"SELECT {NAMED}", (key.tenant, key.fingerprint)).fetchone()[0]:
            return False
        sql = f"SELECT state FROM fills AS f WHERE {_ONE_FILL}"  # noqa: S608 - a constant
        before = connection.execute(sql, _columns(key)).fetchone()
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
        there = connection.execute("SELECT digest FROM token_lists WHERE fill = ?", (row["id"],)).fetchone()
        # One that was never opened may be damaged: then nobody sees the fill until its tokens are written again.
        if there is None or there["digest"] != digest or digest not in self._sound:
            if len(self._sound) >= _SOUND:
                self._sound.clear()
            self._sound.add(digest)
            connection.execute(
                "INSERT OR REPLACE INTO token_lists VALUES (?, ?, ?)",
                (row["id"], digest, self._texts.wrap(str(key), packed)),
            )
        note_change(connection)
        return True

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


def _key(row: Any) -> FillKey:
    return FillKey(
        tenant=Tenant(row["tenant"]),
        fingerprint=Fingerprint(row["fingerprint"]),
        form=Form(row["form"]),
        signature=Signature(row["signature"]),
    )


def _columns(key: FillKey) -> tuple[str, str, str, str]:
    return key.tenant, key.fingerprint, key.form, key.signature
