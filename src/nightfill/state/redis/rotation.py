"""What lies under an old key is sealed anew, so that the old key can go."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.errors import StateUnavailable
from nightfill.state.envelope import body_owner, note_owner, question_owner, renewed
from nightfill.state.redis.answers import Stored
from nightfill.state.redis.server import ROOT, Server, scripts

if TYPE_CHECKING:
    from nightfill.state.seal import RenewableSeal

_TRIES: Final = 10


async def reseal_texts(server: Server, seal: RenewableSeal) -> int:
    """Seal all anew that is not under the current key; how many were. One step each.

    What cannot be opened stays as it is, and so does what changed meanwhile: it is under the current key then.
    Raises StateUnavailable.
    """
    programs = scripts("book")
    count = await _reseal_answers(server, seal)
    for tenant in [name.decode() for name in await server.call("SMEMBERS", f"{ROOT}:tenants")]:
        async for name, packed in server.scan("HSCAN", f"{ROOT}:contexts:{tenant}"):
            before = msgspec.msgpack.decode(packed)[2]
            fresh = renewed(seal, f"{tenant}/{name.decode()}", base64.b64decode(before))
            if fresh is not None:
                after = base64.b64encode(fresh).decode()
                count += await server.run(programs["reseal_source"], tenant, name.decode(), before, after)
            count += await _reseal_questions(server, seal, tenant, name.decode())
        places = [("versions", "content"), ("fills", "tokens")]
        for index, place in places:
            async for field, _ in server.scan("HSCAN", f"{ROOT}:{index}:{tenant}"):
                key = f":{place}:{tenant}\0{field.decode()}"
                sealed = await server.call("GET", ROOT + key)
                fresh = None if sealed is None else renewed(seal, f"{tenant}/{field.decode()}", sealed)
                if fresh is not None:
                    count += await server.run(programs["reseal"], key, blobs=(sealed, fresh))
    return count


async def _reseal_answers(server: Server, seal: RenewableSeal) -> int:
    program, count = scripts("answers")["reseal"], 0
    async for key, _ in server.scan("ZSCAN", f"{ROOT}:answers:serials"):
        value = await server.call("GET", f"{ROOT}:answer:".encode() + key)
        if value is None:
            continue
        old = Stored.parse(value)
        question = None
        if old.question:
            question = renewed(seal, question_owner(old.head.tenant, key, old.head.scope), old.question)
        body = renewed(seal, body_owner(old.head.tenant, key), old.body)
        if question is not None or body is not None:
            fresh = (old.question if question is None else question, old.body if body is None else body)
            count += await server.run(program, blobs=(key, old.question + old.body, *fresh))
    return count


async def _reseal_questions(server: Server, seal: RenewableSeal, tenant: str, context: str) -> int:
    key, owner = f":questions:{tenant}\0{context}", note_owner(tenant, context)
    for _ in range(_TRIES):
        rows = await server.call("LRANGE", ROOT + key, 0, -1)
        fresh = [renewed(seal, owner, row) for row in rows]
        count = sum(row is not None for row in fresh)
        blobs = (*rows, *(old if new is None else new for old, new in zip(rows, fresh, strict=True)))
        if not count or await server.run(scripts("book")["reseal_questions"], key, blobs=blobs):
            return count
    raise StateUnavailable(f"the questions of {tenant}/{context} change all the time")
