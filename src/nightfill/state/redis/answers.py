"""Stored answers and the questions that were asked, in Redis."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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
from nightfill.state.redis.record import Record
from nightfill.state.redis.server import ROOT, Server, batches, pairs, scripts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.state.seal import TextSeal

_BATCH: Final = 500
"""Answers that one program looks at or removes, where they are not of one context."""
_PREFIX: Final = struct.Struct(">BdddII")
"""See common.lua."""


class Head(msgspec.Struct, array_like=True):
    """What is known of a stored answer without opening it. Programs read the first four."""

    tenant: str
    context: str
    """Empty for none; so is the next."""
    fingerprint: str
    origin: Origin
    model: str
    scope_hex: str
    """The server's msgpack knows no bytes."""

    @property
    def scope(self) -> AnswerScope:
        """See `Answer`."""
        return AnswerScope(bytes.fromhex(self.scope_hex))


class Stored(NamedTuple):
    """A stored answer as it lies there; see common.lua."""

    at_s: float
    ttl_s: float
    head: Head
    question: bytes
    """Sealed; empty for none."""
    body: bytes

    @classmethod
    def parse(cls, value: bytes) -> Stored:
        """What the program `put` has written."""
        _, _, at_s, ttl_s, head_bytes, question_bytes = _PREFIX.unpack_from(value)
        begin = _PREFIX.size + head_bytes
        end = begin + question_bytes
        return cls(at_s, ttl_s, _head(value[_PREFIX.size : begin]), value[begin:end], value[end:])


async def sweep(server: Server) -> None:
    """Remove answers to versions that their contexts have no more, as far as that was left."""
    while await server.run(scripts("answers")["sweep"]):
        pass


class RedisAnswerBook:
    """See `AnswerBook`. What goes by all answers or all of a tenant goes in steps, each of them atomic.

    A miss is one command. A hit has further ones: what time it is, and whether the context still has the version, so
    that a change of a context takes no longer for more answers; what is left of them then goes in steps.
    """

    def __init__(self, server: Server, *, seal: TextSeal, bounds: AnswerBounds) -> None:
        self._server = server
        self._texts = Envelopes(seal)
        self._bounds = bounds
        self._scripts = scripts("answers")

    async def put(self, answer: Answer) -> bool:
        """See `AnswerBook`."""
        most, key, tenant = self._bounds, answer.key, answer.tenant
        head = Head(
            tenant=tenant,
            context=answer.context or "",
            fingerprint=answer.fingerprint or "",
            origin=answer.origin,
            model=answer.model,
            scope_hex=answer.scope.hex(),
        )
        question = b""
        if answer.question:
            question = self._texts.wrap(question_owner(tenant, key, answer.scope), answer.question.encode())
        body = self._texts.wrap(body_owner(tenant, key), answer.body)
        if len(question) + len(body) > most.bytes or most.answers < 1:
            return False
        return bool(
            await self._server.run(
                self._scripts["put"],
                tenant,
                head.context,
                head.fingerprint,
                answer.origin,
                answer.at_s,
                answer.ttl_s,
                most.answers,
                most.bytes,
                most.tenant_answers or False,
                blobs=(key, msgspec.msgpack.encode(head), question, body),
                again=False,
            )
        )

    async def get(self, key: AnswerKey) -> Answer | None:
        """See `AnswerBook`."""
        value = await self._server.call("GET", f"{ROOT}:answer:".encode() + key)
        if value is None:
            return None
        stored = Stored.parse(value)
        now_s, rests = await asyncio.gather(self._server.now_s(), self._rests(stored.head))
        if not rests or now_s - stored.at_s > stored.ttl_s:
            return None
        head = stored.head
        question = self._question(head, key, stored.question)
        if question is None:
            return None
        body = self._texts.opened(body_owner(head.tenant, key), stored.body)
        if body is None:
            return None
        return Answer(
            key=key,
            scope=head.scope,
            tenant=Tenant(head.tenant),
            context=ContextName(head.context) if head.context else None,
            fingerprint=Fingerprint(head.fingerprint) if head.fingerprint else None,
            model=head.model,
            question=question,
            body=body,
            origin=head.origin,
            at_s=stored.at_s,
            ttl_s=stored.ttl_s,
        )

    async def served(self, keys: Sequence[AnswerKey]) -> None:
        """See `AnswerBook`."""
        for some in batches(keys, _BATCH):
            await self._server.run(self._scripts["served"], blobs=tuple(some), again=False)

    async def drop(self, tenant: Tenant, *, context: ContextName | None = None) -> int:
        """See `AnswerBook`."""
        dropped = 0
        while some := await self._server.run(self._scripts["drop"], tenant, context or "", _BATCH):
            dropped += some
        return dropped

    async def after(self, serial: int, *, limit: int = 1000) -> list[AnswerNote]:
        """See `AnswerBook`. Opened in a thread."""
        notes: list[AnswerNote] = []
        while len(notes) < limit:
            rows = await self._server.run(self._scripts["after"], serial, min(_BATCH, limit))
            if not rows:
                break
            serial = int(rows[-1][0])
            notes += await asyncio.to_thread(self._notes, rows)
        return notes[:limit]

    async def gone(self, keys: Sequence[AnswerKey]) -> list[AnswerKey]:
        """See `AnswerBook`."""
        name = f"{ROOT}:answer:".encode()
        gone: list[AnswerKey] = []
        for some in batches(keys, _BATCH):
            there = await asyncio.gather(*(self._server.call("EXISTS", name + key) for key in some))
            gone += [key for key, found in zip(some, there, strict=True) if not found]
        return gone

    async def counts(self, tenant: Tenant, context: ContextName) -> dict[Origin, AnswerCounts]:
        """See `AnswerBook`."""
        found: dict[str, dict[str, int]] = {}
        for field, count in pairs(await self._server.call("HGETALL", f"{ROOT}:answers:counts:{tenant}\0{context}")):
            origin, what = field.decode().split(":")
            found.setdefault(origin, {})[what] = int(count)
        return {Origin(origin): AnswerCounts(**counts) for origin, counts in found.items()}

    async def prune(self) -> int:
        """See `AnswerBook`."""
        await sweep(self._server)
        serial, dropped = 0, 0
        while (looked := await self._server.run(self._scripts["prune"], serial, _BATCH)) is not None:
            serial = int(looked[0])
            dropped += looked[1]
        return dropped

    async def _rests(self, head: Head) -> bool:
        """Whether its context, if any, still has its version."""
        if not head.context:
            return True
        packed = await self._server.call("HGET", f"{ROOT}:contexts:{head.tenant}", head.context)
        if packed is None:
            return False
        record = msgspec.msgpack.decode(packed, type=Record)
        return head.fingerprint in (record.current, record.distilled)

    def _notes(self, rows: Sequence[Any]) -> list[AnswerNote]:
        notes = []
        for serial, key, packed, sealed in rows:
            if sealed:
                head = _head(packed)
                # One that cannot be opened is told without its words, or a batch of such would seem to be the end.
                question = self._question(head, key, sealed) or ""
                notes.append(AnswerNote(serial=int(serial), key=key, scope=head.scope, question=question))
        return notes

    def _question(self, head: Head, key: bytes, sealed: bytes) -> str | None:
        if not sealed:
            return ""
        plain = self._texts.opened(question_owner(head.tenant, key, head.scope), sealed)
        return None if plain is None else plain.decode()


class RedisQuestionLog:
    """See `QuestionLog`."""

    def __init__(self, server: Server, *, seal: TextSeal, most: int) -> None:
        self._server = server
        self._texts = Envelopes(seal)
        self._most = most
        self._scripts = scripts("book")

    async def note(self, tenant: Tenant, context: ContextName, questions: Sequence[Asked]) -> None:
        """See `QuestionLog`."""
        owner = note_owner(tenant, context)
        for some in batches(questions[-self._most :] if self._most else (), _BATCH):
            rows = (msgspec.msgpack.encode((asked.at_s, asked.text)) for asked in some)
            sealed = tuple(self._texts.wrap(owner, row) for row in rows)
            await self._server.run(self._scripts["note_questions"], tenant, context, self._most, blobs=sealed)

    async def recent(self, tenant: Tenant, context: ContextName, *, limit: int = 1000) -> list[Asked]:
        """See `QuestionLog`. Opened in a thread."""
        rows = await self._server.call("LRANGE", f"{ROOT}:questions:{tenant}\0{context}", 0, limit - 1)
        return await asyncio.to_thread(self._opened, note_owner(tenant, context), rows)

    def _opened(self, owner: str, rows: Sequence[bytes]) -> list[Asked]:
        opened = (self._texts.opened(owner, row) for row in rows)
        found = [msgspec.msgpack.decode(plain, type=tuple[float, str]) for plain in opened if plain is not None]
        return [Asked(at_s=at_s, text=text) for at_s, text in found]


def _head(packed: bytes) -> Head:
    return msgspec.msgpack.decode(packed, type=Head)
