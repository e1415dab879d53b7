"""Names that people give: of contexts, of tenants and of their users."""

from __future__ import annotations

import re
from typing import Final

from nightfill.contexts.context import NAME_PATTERN, ContextName, Tenant
from nightfill.errors import BadInput

_NAME: Final = re.compile(NAME_PATTERN)
_ALLOWED: Final = "1 to 64 of a-z, 0-9, dot, underscore and hyphen, beginning with a letter or digit"


def parse_name(text: str, *, param: str = "context") -> ContextName:
    """A context's name. Raises BadInput, which says what is allowed."""
    if not _NAME.fullmatch(text):
        raise BadInput(f"context name {_shown(text)} is not allowed: {_ALLOWED}", param=param)
    return ContextName(text)


def parse_tenant(text: str, *, param: str = "tenant") -> Tenant:
    """A tenant's name; the rules are those of a context's. Raises BadInput."""
    if not _NAME.fullmatch(text):
        raise BadInput(f"tenant name {_shown(text)} is not allowed: {_ALLOWED}", param=param)
    return Tenant(text)


def parse_user(text: str, *, param: str = "user") -> str:
    """A user's name, within a tenant; the rules are those of a context's. Raises BadInput."""
    if not _NAME.fullmatch(text):
        raise BadInput(f"user name {_shown(text)} is not allowed: {_ALLOWED}", param=param)
    return text


def _shown(text: str) -> str:
    """The offending name, safe to print and bounded."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")
