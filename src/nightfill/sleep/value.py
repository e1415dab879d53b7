"""What each fill is worth to the store, by the same policy that ranks what is filled first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.contexts.context import FillState
from nightfill.sleep.priority import DEFAULT_TTL_S, case_of, value
from nightfill.sleep.warmth import NEVER_USED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.contexts.context import Context, ContextName, Fill, FillKey, Fingerprint, Outline, Tenant
    from nightfill.sleep.priority import Policy
    from nightfill.state.access import Usage

STAYS: Final = 1.25
"""So many times its priority a fill is worth that is ready: what takes its place must be worth clearly more, or two
contexts that are used alike would push each other out, computed anew each time."""


def values(
    contexts: Sequence[Context],
    fills: Sequence[Fill | Outline],
    usages: Mapping[tuple[Tenant, ContextName], Usage],
    *,
    now_s: float,
    policy: Policy = value,
    default_ttl_s: float = DEFAULT_TTL_S,
) -> dict[FillKey, float]:
    """The value of each of `fills`: that of the dearest context that has its version; 0 where none has."""
    scores = scores_of(contexts, usages, now_s=now_s, policy=policy, default_ttl_s=default_ttl_s)
    return {
        fill.key: scores.get((fill.key.tenant, fill.key.fingerprint), 0.0)
        * (STAYS if fill.state is FillState.READY else 1.0)
        for fill in fills
    }


def scores_of(
    contexts: Sequence[Context],
    usages: Mapping[tuple[Tenant, ContextName], Usage],
    *,
    now_s: float,
    policy: Policy = value,
    default_ttl_s: float = DEFAULT_TTL_S,
) -> dict[tuple[Tenant, Fingerprint], float]:
    """The priority of each version, as that of the dearest context that has it."""
    scores: dict[tuple[Tenant, Fingerprint], float] = {}
    for context in contexts:
        usage = usages.get((context.tenant, context.name), NEVER_USED)
        score = policy(case_of(context, usage, now_s=now_s, default_ttl_s=default_ttl_s)).score
        for fingerprint in context.versions:
            version = (context.tenant, fingerprint)
            scores[version] = max(score, scores.get(version, 0.0))
    return scores
