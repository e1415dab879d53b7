"""The fills of the book of contexts in Redis, with their token lists."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.contexts.context import Fill, FillKey, FillState, Outline
from nightfill.state.envelope import Envelopes, pack, unpack
from nightfill.state.redis.record import tenants
from nightfill.state.redis.server import ROOT, Server, batches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nightfill.contexts.context import Fingerprint, Tenant
    from nightfill.state.redis.changes import RedisChanges
    from nightfill.state.seal import TextSeal

_CACHED_TOKENS: Final = 1 << 20
"""Bound of the unpacked token lists kept in memory, by tokens."""
_CACHED_BYTES: Final = 128 << 20
"""Bound of the packed ones, for who looks at all fills comes by often, and they do not change."""
_KNOWN: Final = 4096
_AT_ONCE: Final = 100


class _Record(msgspec.Struct, array_like=True):
    """A fill as `book.lua` has it, without its tokens."""

    state: FillState
    stored_tokens: int
    filled_at_s: float
    fill_seconds: float
    reason: str
    digest: str
    total_tokens: int = -1
    """Below 0 for one that was written before there was the column."""


class RedisFills:
    """The part of `ContextBook` that is about fills.

    A fill whose tokens cannot be opened, damaged or sealed with another key, is absent.
    """

    def __init__(self, server: Server, changes: RedisChanges, *, seal: TextSeal) -> None:
        self._server = server
        self._changes = changes
        self._texts = Envelopes(seal)
        self._unpacked: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._packed: OrderedDict[str, bytes] = OrderedDict()
        self._sound: set[str] = set()
        """Digests of token lists that were opened or written here."""

    async def get(self, key: FillKey) -> Fill | None:
        """See `ContextBook.fill`."""
        packed = await self._server.call("HGET", f"{ROOT}:fills:{key.tenant}", _field(key))
        return None if packed is None else await self._fill(key, packed)

    async def all(self, tenant: Tenant | None) -> list[Fill]:
        """See `ContextBook.fills`. Read in steps; each fill is of one instant."""
        found: dict[FillKey, Fill] = {}
        for whose in await tenants(self._server) if tenant is None else [tenant]:
            rows = {field: packed async for field, packed in self._server.scan("HSCAN", f"{ROOT}:fills:{whose}")}
            for some in batches(tuple(rows.items()), _AT_ONCE):
                keys = [FillKey.parse(f"{whose}/{field.decode()}") for field, _ in some]
                for fill in await asyncio.gather(*map(self._fill, keys, (packed for _, packed in some))):
                    if fill is not None:
                        found[fill.key] = fill
        return list(found.values())

    async def outlines_of(self, tenant: Tenant, *versions: Fingerprint) -> list[Outline]:
        """See `ContextBook`."""
        found: list[Outline] = []
        for version in versions:
            packed = await self._server.call("HGET", f"{ROOT}:versions:{tenant}", version)
            fields = [] if packed is None else msgspec.msgpack.decode(packed)[1] or []
            rows = await self._server.call("HMGET", f"{ROOT}:fills:{tenant}", *fields) if fields else []
            for field, row in zip(fields, rows, strict=True):
                outline = None if row is None else await self.outline(tenant, field.encode(), row)
                if outline is not None:
                    found.append(outline)
        return found

    async def outlines(self) -> AsyncIterator[Sequence[Outline]]:
        """See `ContextBook`. What changes its place meanwhile may come twice."""
        for whose in await tenants(self._server):
            some: list[Outline] = []
            async for field, packed in self._server.scan("HSCAN", f"{ROOT}:fills:{whose}"):
                outline = await self.outline(whose, field, packed)
                if outline is not None:
                    some.append(outline)
                if len(some) >= _AT_ONCE:
                    yield some
                    some = []
            yield some

    async def put(self, fill: Fill) -> bool:
        """See `ContextBook.put_fill`. The token list travels only when it is not known to be there."""
        key, packed = fill.key, pack(fill.tokens)
        digest = hashlib.sha256(f"{key}\0".encode() + packed).hexdigest()
        record = (
            fill.state,
            fill.stored_tokens,
            fill.filled_at_s,
            fill.fill_seconds,
            fill.reason,
            digest,
            fill.total_tokens,
        )
        words = (key.tenant, key.fingerprint, _field(key), record)
        # One that was never opened may be damaged: then nobody sees the fill until its tokens are written again.
        reply = await self._changes.make("put_fill", *words) if digest in self._sound else [-1]
        if reply[0] == -1:
            reply = await self._changes.make("put_fill", *words, blobs=(self._texts.wrap(str(key), packed),))
            self._know(digest)
        return bool(reply[0])

    async def mark(self, key: FillKey, *, state: FillState, reason: str, stored_tokens: int | None) -> bool:
        """See `ContextBook.mark_fill`."""
        stored = False if stored_tokens is None else stored_tokens
        return bool((await self._changes.make("mark_fill", key.tenant, _field(key), state, reason, stored))[0])

    async def drop(self, key: FillKey) -> bool:
        """See `ContextBook.drop_fill`."""
        return bool((await self._changes.make("drop_fill", key.tenant, key.fingerprint, _field(key)))[0])

    def forget(self) -> None:
        """Keep no token list in memory."""
        self._unpacked.clear()
        self._packed.clear()

    async def outline(self, tenant: Tenant, field: bytes, packed: bytes) -> Outline | None:
        """From a record of `book.lua`; None when it is from before its tokens were counted, and they cannot be
        opened.
        """
        key = FillKey.parse(f"{tenant}/{field.decode()}")
        record = msgspec.msgpack.decode(packed, type=_Record)
        total = record.total_tokens
        if total < 0:
            tokens = await self._tokens(key, record.digest)
            if tokens is None:
                return None
            total = len(tokens)
        return Outline(
            key=key,
            state=record.state,
            total_tokens=total,
            stored_tokens=record.stored_tokens,
            filled_at_s=record.filled_at_s,
            fill_seconds=record.fill_seconds,
            reason=record.reason,
        )

    async def _fill(self, key: FillKey, packed: bytes) -> Fill | None:
        record = msgspec.msgpack.decode(packed, type=_Record)
        tokens = await self._tokens(key, record.digest)
        if tokens is None:
            return None
        return Fill(
            key=key,
            state=record.state,
            tokens=tokens,
            stored_tokens=record.stored_tokens,
            filled_at_s=record.filled_at_s,
            fill_seconds=record.fill_seconds,
            reason=record.reason,
        )

    async def _tokens(self, key: FillKey, digest: str) -> tuple[int, ...] | None:
        tokens = self._unpacked.get(digest)
        if tokens is not None:
            self._unpacked.move_to_end(digest)
            return tokens
        packed = self._packed.get(digest)
        if packed is None:
            sealed = await self._server.call("GET", f"{ROOT}:tokens:{key.tenant}\0{_field(key)}")
            packed = None if sealed is None else self._texts.opened(str(key), sealed)
            if packed is None or hashlib.sha256(f"{key}\0".encode() + packed).hexdigest() != digest:
                return None  # cannot be opened, or replaced or dropped since the fill was read
            self._know(digest)
            self._packed[digest] = packed
            _bound(self._packed, _CACHED_BYTES)
        tokens = self._unpacked[digest] = unpack(packed)
        _bound(self._unpacked, _CACHED_TOKENS)
        return tokens

    def _know(self, digest: str) -> None:
        if len(self._sound) >= _KNOWN:
            self._sound.clear()
        self._sound.add(digest)


def _bound(cache: OrderedDict[str, Any], most: int) -> None:
    """Drop the oldest ones until no more is held."""
    held = sum(map(len, cache.values()))
    while held > most and len(cache) > 1:
        held -= len(cache.popitem(last=False)[1])


def _field(key: FillKey) -> str:
    return f"{key.fingerprint}/{key.form}/{key.signature}"
