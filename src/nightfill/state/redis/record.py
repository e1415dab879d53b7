"""A context as it lies in Redis."""

from __future__ import annotations

import msgspec


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
