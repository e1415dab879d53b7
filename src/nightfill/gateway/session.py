"""Which requests belong together: the session that a client names, in whichever of the usual ways. Pure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightfill.contexts import Tenant

SESSION_HEADERS: Final = (
    b"x-nightfill-session-id",
    b"x-session-id",
    b"x-dynamo-session-id",
    b"x-claude-code-session-id",
    b"session-id",
    b"thread-id",
    b"x-session-token",
    b"x-user-id",
)
"""As clients and routers call it; the first present one counts. All of them go on unchanged."""
SESSION_MEMBERS: Final = ("prompt_cache_key", "user")
"""Of the body, where no header says it."""


def session_of(tenant: Tenant, headers: Mapping[bytes, bytes], members: Mapping[str, msgspec.Raw]) -> bytes | None:
    """32 bytes that name the request's session, or None. Two tenants' sessions are never the same one."""
    for name in SESSION_HEADERS:
        if value := headers.get(name):
            return _digest(tenant, value)
    for member in SESSION_MEMBERS:
        try:
            text = msgspec.json.decode(members.get(member, b"null"), type=str | None)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # not a name; what it means is the engine's affair
        if text:
            return _digest(tenant, text.encode(errors="replace"))
    return None


def _digest(tenant: Tenant, value: bytes) -> bytes:
    return hashlib.sha256(b"nightfill.session.1\0" + tenant.encode() + b"\0" + value).digest()
