"""The book of contexts in Redis."""

from __future__ import annotations

import base64
import binascii
import logging
from typing import TYPE_CHECKING, Any, Final

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
from nightfill.state.redis.answers import sweep
from nightfill.state.redis.record import Record, tenants
from nightfill.state.redis.server import ROOT, Server, batches, scripts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nightfill.contexts.context import Fill, FillKey, FillState, Outline
    from nightfill.state.redis.changes import RedisChanges
    from nightfill.state.redis.fills import RedisFills
    from nightfill.state.seal import TextSeal

_LOG: Final = logging.getLogger(__name__)
_AT_ONCE: Final = 100
_TRIES: Final = 3


class RedisBook:
    """See `SourceBook`.

    What cannot be opened, damaged or sealed with another key, takes nothing else with it: a fill is absent then, and
    filled again; a source is not looked at any more, until the context is put again. A content alone is missed, and
    raises StateUnavailable.
    """

    def __init__(self, server: Server, fills: RedisFills, changes: RedisChanges, *, seal: TextSeal) -> None:
        self._server = server
        self._fills = fills
        self._changes = changes
        self._texts = Envelopes(seal)
        self._checked = scripts("book")["checked"]

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
        for whose in await self.tenants() if tenant is None else [tenant]:
            async for name, packed in self._server.scan("HSCAN", f"{ROOT}:contexts:{whose}"):
                found[name.decode(), whose] = self.context(packed)
        return [found[key] for key in sorted(found)]

    async def delete(self, tenant: Tenant, name: ContextName) -> bool:
        """See `ContextBook`."""
        self._fills.forget()
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
        await self._server.run(self._checked, tenant, name)

    async def is_empty(self) -> bool:
        """See `ContextBook`."""
        return not await self._server.call("EXISTS", f"{ROOT}:tenants")

    async def tenants(self) -> list[Tenant]:
        """See `ContextBook`."""
        return await tenants(self._server)

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

    async def fill(self, key: FillKey) -> Fill | None:
        """See `ContextBook`."""
        return await self._fills.get(key)

    async def fills(self, tenant: Tenant | None = None) -> list[Fill]:
        """See `ContextBook`. Read in steps; each fill is of one instant."""
        return await self._fills.all(tenant)

    async def outlines_of(self, tenant: Tenant, *versions: Fingerprint) -> list[Outline]:
        """See `ContextBook`."""
        return await self._fills.outlines_of(tenant, *versions)

    def outlines(self) -> AsyncIterator[Sequence[Outline]]:
        """See `ContextBook`. What changes its place meanwhile may come twice."""
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

    async def _change(self, name: str, *words: object, blobs: tuple[bytes, ...] = ()) -> Any:
        reply = await self._changes.make(name, *words, blobs=blobs)
        if reply[0] > 0:
            try:
                await sweep(self._server)
            except StateUnavailable as exc:
                # The change itself is done, and nobody is given these any more.
                _LOG.warning("answers to an old version are removed later: %s", exc)
        return reply

    def _sealed(self, tenant: Tenant, fingerprint: Fingerprint, content: Content) -> bytes:
        return self._texts.wrap(f"{tenant}/{fingerprint}", msgspec.msgpack.encode(content))

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


def _record(packed: bytes) -> Record:
    return msgspec.msgpack.decode(packed, type=Record)


def _text(sealed: bytes) -> str:
    """Records hold text alone."""
    return base64.b64encode(sealed).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
