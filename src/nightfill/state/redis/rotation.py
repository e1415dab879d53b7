"""Texts, sources and token lists under an old key are sealed anew, so that the old key can go."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec

from nightfill.errors import StateUnavailable
from nightfill.state.envelope import unwrap, wrap
from nightfill.state.redis.server import ROOT, Server, scripts

if TYPE_CHECKING:
    from nightfill.state.seal import RenewableSeal


async def reseal_texts(server: Server, seal: RenewableSeal) -> int:
    """Seal all anew that is not under the current key; how many were. One step each.

    What cannot be opened stays as it is, and so does what changed meanwhile: it is under the current key then.
    Raises StateUnavailable.
    """
    programs = scripts("book")
    renewed = 0
    for tenant in [name.decode() for name in await server.call("SMEMBERS", f"{ROOT}:tenants")]:
        async for name, packed in server.scan("HSCAN", f"{ROOT}:contexts:{tenant}"):
            before = msgspec.msgpack.decode(packed)[2]
            fresh = _fresh(seal, f"{tenant}/{name.decode()}", base64.b64decode(before))
            if fresh is not None:
                after = base64.b64encode(fresh).decode()
                renewed += await server.run(programs["reseal_source"], tenant, name.decode(), before, after)
        places = [("versions", "content"), ("fills", "tokens")]
        for index, place in places:
            async for field, _ in server.scan("HSCAN", f"{ROOT}:{index}:{tenant}"):
                key = f":{place}:{tenant}\0{field.decode()}"
                sealed = await server.call("GET", ROOT + key)
                fresh = None if sealed is None else _fresh(seal, f"{tenant}/{field.decode()}", sealed)
                if fresh is not None:
                    renewed += await server.run(programs["reseal"], key, blobs=(sealed, fresh))
    return renewed


def _fresh(seal: RenewableSeal, owner: str, sealed: bytes) -> bytes | None:
    """None when it is under the current key already, or cannot be opened."""
    if seal.current(sealed):
        return None
    try:
        return wrap(seal, owner, unwrap(seal, owner, sealed))
    except StateUnavailable:
        return None
