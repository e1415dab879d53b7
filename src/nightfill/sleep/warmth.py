"""Which contexts are kept warm by replay, for an engine that does not use restored KV. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.contexts.context import FillKey
from nightfill.sleep.priority import DEFAULT_TTL_S, case_of, value
from nightfill.state.access import Usage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from nightfill.contexts.context import Context, ContextName, Tenant
    from nightfill.engines.engine import Description
    from nightfill.sleep.priority import Policy

NEVER_USED: Final = Usage(last_access_s=None, accesses_7d=0, broken_7d=0)


def capacity(slots: int) -> int:
    """How many prefixes may be kept in so many slots: one slot stays for other requests, where there are several."""
    return max(1, slots - 1)


def to_keep_warm(
    contexts: Sequence[Context],
    usages: Mapping[tuple[Tenant, ContextName], Usage],
    description: Description,
    *,
    impossible: Collection[FillKey],
    now_s: float,
    policy: Policy = value,
    default_ttl_s: float = DEFAULT_TTL_S,
) -> list[FillKey]:
    """The most valuable prefixes, first things first, as many as there is room for. Equal contents count once.

    `impossible` are those known not to fit the engine's context; they take no room.
    """
    scored = [
        (
            policy(
                case_of(one, usages.get((one.tenant, one.name), NEVER_USED), now_s=now_s, default_ttl_s=default_ttl_s)
            ).score,
            one,
        )
        for one in contexts
    ]
    scored.sort(key=lambda pair: (-pair[0], pair[1].name, pair[1].tenant))
    keys = dict.fromkeys(
        FillKey(tenant=one.tenant, fingerprint=one.current, form=form, signature=description.signature)
        for _, one in scored
        for form in one.forms
    )
    return [key for key in keys if key not in impossible][: capacity(description.slots)]
