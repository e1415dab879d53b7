"""The book of contexts in Redis."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

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
    Source,
    Tenant,
    TextSource,
)
from nightfill.contexts.fingerprint import content_bytes
from nightfill.errors import StateUnavailable
from nightfill.state.envelope import Envelopes, pack, unpack
from nightfill.state.redis.answers import sweep
from nightfill.state.redis.record import Record
from nightfill.state.redis.server import ROOT, Server, batches, scripts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nightfill.state.seal import TextSeal

_LOG: Final = logging.getLogger(__name__)
_CACHED_TOKENS: Final = 1 << 20
"""Bound of the unpacked token lists kept in memory, by tokens."""
_CACHED_BYTES: Final = 128 << 20
"""Bound of the packed ones, for who looks at all fills comes by often, and they do not change."""
_KNOWN: Final = 4096
_AT_ONCE: Final = 100
LOOK_EVERY_S: Final = 0.05
SETTLE_S: Final = 2 * LOOK_EVERY_S
"""So long at most a change by another process goes unseen by `changes`, whatever happens to the server and to us."""
_TRIES: Final = 3
_TAKE_ANSWERS: Final = ("put", "replace", "put_distilled", "delete")
"""Changes that may leave answers to be removed."""


class _FillRecord(msgspec.Struct, array_like=True):
    """A fill as `book.lua` has it, without its tokens."""

    state: FillState
    stored_tokens: int
    filled_at_s: float
    fill_seconds: float
    reason: str
    digest: str
    total_tokens: int = -1
    """Below 0 for one that was written before there was the column."""


class RedisBook:
    """See `SourceBook`.

    `changes` answers from memory: own changes are in it at once, those of others within `SETTLE_S`. Once the server has
    not answered for so long, or we were too late to ask, it says so.

    What cannot be opened, damaged or sealed with another key, takes nothing else with it: a fill is absent then, and
    filled again; a source is not looked at any more, until the context is put again. A content alone is missed, and
    raises StateUnavailable.
    """

    def __init__(self, server: Server, *, seal: TextSeal) -> None:
        self._server = server
        self._texts = Envelopes(seal)
        self._scripts = scripts("book")
        self._unpacked: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._packed: OrderedDict[str, bytes] = OrderedDict()
        self._sound: set[str] = set()
        """Digests of token lists that were opened or written here."""
        self._changes = 0
        self._own_changes = 0
        self._asked_at_s = float("-inf")
        """When the newest question that was answered was put: changes by others before that are in `_changes`."""
        self._untold = 0
        self._looking: asyncio.Task[None] | None = None

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
        words = (
            tenant,
            name,
            _text(self._texts.wrap(f"{tenant}/{name}", msgspec.json.encode(source))),
            ",".join(forms),
            pinned,
            False if ttl_s is None else ttl_s,
            user,
            False if options is None else msgspec.json.encode(options).decode(),
            fingerprint,
            content_bytes(content),
            is_watched(source),
        )
        packed = (await self._change("put", *words, blobs=(self._sealed(tenant, fingerprint, content),)))[1]
        return self.context(packed)

    async def replace(self, context: Context, *, content: Content, fingerprint: Fingerprint) -> Context | None:
        """See `SourceBook`."""
        where = (context.tenant, context.name)
        sealed = self._sealed(context.tenant, fingerprint, content)
        for _ in range(_TRIES):
            packed = await self._server.call("HGET", f"{ROOT}:contexts:{context.tenant}", context.name)
            if packed is None:
                return None
            record = _record(packed)
            there = self._context(record)
            if (there.current, there.source) != (context.current, context.source):
                return None
            words = (*where, record.current, record.source, fingerprint, content_bytes(content))
            reply = await self._change("replace", *words, blobs=(sealed,))
            if reply[0]:
                return self.context(reply[1])
        return None

    async def put_distilled(self, context: Context, *, content: Content, fingerprint: Fingerprint) -> bool:
        """See `ContextBook`."""
        words = (context.tenant, context.name, context.current, fingerprint)
        sealed = self._sealed(context.tenant, fingerprint, content)
        return bool((await self._change("put_distilled", *words, blobs=(sealed,)))[0])

    async def get(self, tenant: Tenant, name: ContextName) -> Context | None:
        """See `ContextBook`."""
        packed = await self._server.call("HGET", f"{ROOT}:contexts:{tenant}", name)
        return None if packed is None else self.context(packed)

    async def contexts(self, tenant: Tenant | None = None) -> list[Context]:
        """See `ContextBook`. Read in steps; each context is of one instant."""
        found: dict[tuple[str, str], Context] = {}
        for whose in await self._tenants(tenant):
            async for name, packed in self._server.scan("HSCAN", f"{ROOT}:contexts:{whose}"):
                found[name.decode(), whose] = self.context(packed)
        return [found[key] for key in sorted(found)]

    async def delete(self, tenant: Tenant, name: ContextName) -> bool:
        """See `ContextBook`."""
        self._unpacked.clear()
        self._packed.clear()
        return bool((await self._change("delete", tenant, name))[0])

    async def content(self, tenant: Tenant, fingerprint: Fingerprint) -> Content | None:
        """See `ContextBook`."""
        sealed = await self._server.call("GET", f"{ROOT}:content:{tenant}\0{fingerprint}")
        if sealed is None:
            return None
        plain = self._texts.unwrap(f"{tenant}/{fingerprint}", sealed)
        found: Content = msgspec.msgpack.decode(plain, type=Content)
        return found

    async def checked(self, tenant: Tenant, name: ContextName) -> None:
        """See `ContextBook`."""
        await self._server.run(self._scripts["checked"], tenant, name)

    async def fill(self, key: FillKey) -> Fill | None:
        """See `ContextBook`."""
        packed = await self._server.call("HGET", f"{ROOT}:fills:{key.tenant}", _field(key))
        return None if packed is None else await self._fill(key, packed)

    async def fills(self, tenant: Tenant | None = None) -> list[Fill]:
        """See `ContextBook`. Read in steps; each fill is of one instant."""
        found: dict[FillKey, Fill] = {}
        for whose in await self._tenants(tenant):
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
        for whose in await self.tenants():
            some: list[Outline] = []
            async for field, packed in self._server.scan("HSCAN", f"{ROOT}:fills:{whose}"):
                outline = await self.outline(whose, field, packed)
                if outline is not None:
                    some.append(outline)
                if len(some) >= _AT_ONCE:
                    yield some
                    some = []
            yield some

    async def outline(self, tenant: Tenant, field: bytes, packed: bytes) -> Outline | None:
        """From a record of `book.lua`; None when it is from before its tokens were counted, and they cannot be
        opened.
        """
        key = FillKey.parse(f"{tenant}/{field.decode()}")
        record = msgspec.msgpack.decode(packed, type=_FillRecord)
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

    async def is_empty(self) -> bool:
        """See `ContextBook`."""
        return not await self._server.call("EXISTS", f"{ROOT}:tenants")

    async def tenants(self) -> list[Tenant]:
        """See `ContextBook`."""
        return sorted(Tenant(name.decode()) for name in await self._server.call("SMEMBERS", f"{ROOT}:tenants"))

    async def watched(self) -> list[Context]:
        """See `SourceBook`."""
        names = sorted(name.decode() for name in await self._server.call("SMEMBERS", f"{ROOT}:watched"))
        by_tenant: dict[str, list[str]] = {}
        for tenant, _, name in (one.partition("\0") for one in names):
            by_tenant.setdefault(tenant, []).append(name)
        found: list[Context] = []
        for tenant, of in by_tenant.items():
            for some in batches(of, _AT_ONCE):
                rows = await self._server.call("HMGET", f"{ROOT}:contexts:{tenant}", *some)
                found += [self.context(packed) for packed in rows if packed is not None]
        return found

    async def watch(self, contexts: Sequence[Context]) -> None:
        """Have those of these whose source may change among the watched ones."""
        names = [f"{one.tenant}\0{one.name}" for one in contexts if is_watched(one.source)]
        if names:
            await self._server.call("SADD", f"{ROOT}:watched", *names)

    async def put_fill(self, fill: Fill) -> bool:
        """See `ContextBook`. The token list travels only when it is not known to be there."""
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
        reply = await self._change("put_fill", *words) if digest in self._sound else [-1]
        if reply[0] == -1:
            reply = await self._change("put_fill", *words, blobs=(self._texts.wrap(str(key), packed),))
            self._know(digest)
        return bool(reply[0])

    async def mark_fill(self, key: FillKey, *, state: FillState, reason: str, stored_tokens: int | None = None) -> bool:
        """See `ContextBook`."""
        stored = False if stored_tokens is None else stored_tokens
        return bool((await self._change("mark_fill", key.tenant, _field(key), state, reason, stored))[0])

    async def drop_fill(self, key: FillKey) -> bool:
        """See `ContextBook`."""
        return bool((await self._change("drop_fill", key.tenant, key.fingerprint, _field(key)))[0])

    def changes(self) -> int:
        """See `ContextBook`. The first call sets off the task that looks for changes by others."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="changes of the book")
        if time.monotonic() - self._asked_at_s <= SETTLE_S:
            return self._changes
        self._untold -= 1
        return self._untold

    async def aclose(self) -> None:
        """Stop looking. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _look(self) -> None:
        said = ""
        while True:
            try:
                before, asked_at_s = self._own_changes, time.monotonic()
                number = int(await self._server.call("GET", f"{ROOT}:changes") or 0)
                # It may be from before a change of our own.
                self._changes = number if before == self._own_changes else max(self._changes, number)
                self._asked_at_s = max(self._asked_at_s, asked_at_s)
                if said:
                    _LOG.info("the state answers again")
                said = ""
            except StateUnavailable as exc:
                if not said:
                    _LOG.warning("going on with what is known of contexts: %s", exc)
                said = str(exc)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _change(self, name: str, *words: object, blobs: tuple[bytes, ...] = ()) -> Any:
        asked_at_s = time.monotonic()
        reply = await self._server.run(self._scripts[name], *words, blobs=blobs)
        if reply[0] > 0:
            self._asked_at_s = max(self._asked_at_s, asked_at_s)
            self._own_changes += 1
            self._changes = max(self._changes, reply[0])
            if name in _TAKE_ANSWERS:
                await self._sweep()
        return reply

    async def _sweep(self) -> None:
        try:
            await sweep(self._server)
        except StateUnavailable as exc:
            # The change itself is done, and nobody is given these any more.
            _LOG.warning("answers to an old version are removed later: %s", exc)

    async def _tenants(self, tenant: Tenant | None) -> list[str]:
        if tenant is not None:
            return [tenant]
        return [str(name) for name in await self.tenants()]

    def _sealed(self, tenant: Tenant, fingerprint: Fingerprint, content: Content) -> bytes:
        return self._texts.wrap(f"{tenant}/{fingerprint}", msgspec.msgpack.encode(content))

    async def _fill(self, key: FillKey, packed: bytes) -> Fill | None:
        record = msgspec.msgpack.decode(packed, type=_FillRecord)
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

    def context(self, packed: bytes) -> Context:
        """From a record of `book.lua`."""
        return self._context(_record(packed))

    def _context(self, record: Record) -> Context:
        encoded = self._texts.opened(f"{record.tenant}/{record.name}", _bytes(record.source))
        try:
            source: Source = TextSource() if encoded is None else msgspec.json.decode(encoded, type=Source)
            options = msgspec.json.decode(record.options, type=ContextOptions)
        except msgspec.MsgspecError as exc:
            raise StateUnavailable(f"context {record.name}: its source or options cannot be read: {exc}") from exc
        return Context(
            tenant=Tenant(record.tenant),
            name=ContextName(record.name),
            source=source,
            forms=tuple(Form(form) for form in record.forms.split(",") if form),
            pinned=record.pinned,
            ttl_s=None if isinstance(record.ttl_s, bool) else record.ttl_s,
            current=Fingerprint(record.current),
            content_bytes=record.content_bytes,
            created_at_s=record.created_at_s,
            updated_at_s=record.updated_at_s,
            checked_at_s=record.checked_at_s,
            user=record.user,
            options=options,
            distilled=Fingerprint(record.distilled) if record.distilled else None,
        )


def is_watched(source: Source) -> bool:
    """Whether it may change by itself."""
    return not isinstance(source, TextSource | MessagesSource)


def _bound(cache: OrderedDict[str, Any], most: int) -> None:
    """Drop the oldest ones until no more is held."""
    held = sum(map(len, cache.values()))
    while held > most and len(cache) > 1:
        held -= len(cache.popitem(last=False)[1])


def _record(packed: bytes) -> Record:
    return msgspec.msgpack.decode(packed, type=Record)


def _field(key: FillKey) -> str:
    return f"{key.fingerprint}/{key.form}/{key.signature}"


def _text(sealed: bytes) -> str:
    """Records hold text alone."""
    return base64.b64encode(sealed).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
