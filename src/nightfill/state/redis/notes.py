"""The engine book in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nightfill.state.engines import EngineNote
from nightfill.state.redis.server import ROOT, Server, pairs, scripts

if TYPE_CHECKING:
    from collections.abc import Mapping


class RedisEngineBook:
    """See `EngineBook`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._scripts = scripts("books")

    async def put(self, name: str, body: Mapping[str, str | int | bool]) -> None:
        """See `EngineBook`."""
        await self._server.run(self._scripts["note_engine"], name, msgspec.json.encode(dict(body)).decode())

    async def get(self, name: str) -> EngineNote | None:
        """See `EngineBook`."""
        packed = await self._server.call("HGET", f"{ROOT}:engines", name)
        return None if packed is None else _note(name, packed)

    async def notes(self) -> list[EngineNote]:
        """See `EngineBook`."""
        reply = await self._server.call("HGETALL", f"{ROOT}:engines")
        return sorted((_note(name.decode(), packed) for name, packed in pairs(reply)), key=lambda note: note.name)

    async def forget(self, name: str) -> bool:
        """See `EngineBook`."""
        return bool(await self._server.call("HDEL", f"{ROOT}:engines", name))


def _note(name: str, packed: bytes) -> EngineNote:
    seen_at_s, body = msgspec.msgpack.decode(packed, type=tuple[float, str])
    return EngineNote(name=name, body=msgspec.json.decode(body, type=dict[str, str | int | bool]), seen_at_s=seen_at_s)
