"""Questions that several commands ask of the state."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nightfill.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.config import Settings
    from nightfill.contexts import Context, ContextName, Tenant
    from nightfill.state.access import Usage
    from nightfill.state.state import State


async def known(state: State, tenant: Tenant, name: ContextName) -> Context:
    """The context. Raises NotFound, which names those that there are."""
    found = await state.book.get(tenant, name)
    if found is None:
        others = [context.name for context in await state.book.contexts(tenant) if context.chat is None]
        there = (
            f"there are: {', '.join(others[:10])}{', ...' if len(others) > 10 else ''}" if others else "there is none"
        )
        raise NotFound(f"no context {name!r} of tenant {tenant!r}; {there}", param="context")
    return found


def settle_s(settings: Settings) -> float:
    """After so many seconds, gateways of all hosts know what was changed of contexts, or that they do not know."""
    if not settings.state:
        return 0.0
    from nightfill.state.redis.changes import SETTLE_S

    return SETTLE_S


async def usages(state: State, contexts: Sequence[Context]) -> list[Usage]:
    """How each of the contexts was used up to now."""
    now_s = time.time()
    return [await state.access.usage(context.tenant, context.name, now_s=now_s) for context in contexts]
