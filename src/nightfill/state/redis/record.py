"""Contexts as they lie in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nightfill.contexts.context import Tenant
from nightfill.state.redis.server import ROOT

if TYPE_CHECKING:
    from nightfill.state.redis.server import Server


class Record(msgspec.Struct, array_like=True):
    """A context as `book.lua` has it."""

    name: str
    tenant: str
    source: str
    forms: str
    pinned: bool
    ttl_s: float | bool
    """False for None."""
    current: str
    content_bytes: int
    created_at_s: float
    updated_at_s: float
    checked_at_s: float
    user: str
    options: str = "{}"
    distilled: str = ""


async def tenants(server: Server) -> list[Tenant]:
    """Those with contexts, in order."""
    return sorted(Tenant(name.decode()) for name in await server.call("SMEMBERS", f"{ROOT}:tenants"))
