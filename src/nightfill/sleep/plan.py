"""What is going to be filled, in which order, and why or why not: one line per context and form."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.contexts.context import FillKey, FillState
from nightfill.engines.engine import Reuse
from nightfill.ledger import tokens_to_reserve
from nightfill.sleep.priority import DEFAULT_TTL_S, Priority, case_of, value
from nightfill.sleep.retry import NO_ROOM
from nightfill.sleep.warmth import NEVER_USED, capacity, to_keep_warm
from nightfill.sleep.worth import ALIKE
from nightfill.state.jobs import JobState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from nightfill.contexts.context import Context, ContextName, Fill, Fingerprint, Form, Outline, Tenant
    from nightfill.engines.engine import Description
    from nightfill.sleep.priority import Policy
    from nightfill.sleep.worth import Case, Speeds
    from nightfill.state.access import Usage
    from nightfill.state.budgets import Scope
    from nightfill.state.jobs import Job


CHATS: Final = "(chats)"
"""What the ledger calls chats about no context."""


class Verdict(enum.StrEnum):
    """What the worker does about it."""

    FILL = "fill"
    REFILL = "refill"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """For room in a budget."""

    until_s: float
    """Unix seconds: there may be some then."""
    valued_s: float
    """In so many seconds from then on those that wait come, the most valuable first."""
    scope: Scope | None = None
    """Whose budget; there may be room earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLine:
    """The verdict on one context in one form, for one engine."""

    tenant: Tenant
    context: ContextName
    form: Form
    engine: str
    """Empty when no engine has been seen yet; `key` is None then."""
    key: FillKey | None
    verdict: Verdict
    priority: float
    total_tokens: int
    """0 while unknown: nobody has asked the engine's tokenizer yet."""
    why: str
    user: str = ""
    missing_tokens: int = 0
    """Still to be computed; an estimate while `total_tokens` is unknown."""
    queued: bool = False
    """It has a job already."""
    payer: str = ""
    """Under whose name the ledger has it."""
    pinned: bool = False
    waits: Waits | None = None
    case: Case | None = None
    """What the priority was found from; None when no engine has been seen yet."""
    lasts_until_s: float | None = None
    """Unix seconds: so long it is filled if nobody uses it; `now_s` for what is not. None: it cannot be."""


def plan(
    contexts: Sequence[Context],
    fills: Sequence[Fill | Outline],
    usages: Mapping[tuple[Tenant, ContextName], Usage],
    jobs: Sequence[Job],
    description: Description | None,
    *,
    now_s: float,
    policy: Policy = value,
    default_ttl_s: float = DEFAULT_TTL_S,
    speeds: Speeds = ALIKE,
) -> list[PlanLine]:
    """What comes first is filled first; what is not going to be filled follows, by name.

    `jobs` are the unfinished and the dead ones. None for `description`: no engine has run here yet.
    """
    fill_of = {fill.key: fill for fill in fills}
    job_of = {job.target: job for job in jobs if job.state in (JobState.QUEUED, JobState.LEASED, JobState.DEAD)}
    warm: list[FillKey] = []
    if description is not None and description.reuse is Reuse.NONE:
        long = {fill.key for fill in fills if fill.total_tokens >= description.context_length}
        warm = to_keep_warm(
            contexts, usages, description, impossible=long, now_s=now_s, policy=policy, default_ttl_s=default_ttl_s
        )
    lines = []
    for context in contexts:
        usage = usages.get((context.tenant, context.name), NEVER_USED)
        for version, form in _texts(context, description):
            if description is None:
                verdict, why = Verdict.SKIP, "waits for the first start of an engine"
                key, fill, job, case = None, None, None, None
                priority = policy(case_of(context, usage, now_s=now_s, default_ttl_s=default_ttl_s))
            else:
                key = FillKey(tenant=context.tenant, fingerprint=version, form=form, signature=description.signature)
                fill, job = fill_of.get(key), job_of.get(str(key))
                case = case_of(context, usage, now_s=now_s, default_ttl_s=default_ttl_s, fill=fill, speeds=speeds)
                priority = policy(case)
                wanted = context.pinned or priority.again
                if description.reuse is Reuse.NONE:
                    verdict, why = Verdict.SKIP, _replayed(description, fill, warm=key in warm)
                else:
                    verdict, why = _judge(description, fill, job, priority, wanted=wanted, now_s=now_s)
            lines.append(
                PlanLine(
                    tenant=context.tenant,
                    context=context.name,
                    form=form,
                    engine=description.engine if description else "",
                    key=key,
                    verdict=verdict,
                    priority=priority.score,
                    total_tokens=fill.total_tokens if fill else 0,
                    why=why if version == context.current else f"distilled: {why}",
                    user=context.user,
                    missing_tokens=tokens_to_reserve(context, fill, distilled=version != context.current),
                    queued=job is not None,
                    payer=context.name if context.chat is None else context.chat.context or CHATS,
                    pinned=context.pinned,
                    case=case,
                    lasts_until_s=_lasts_until_s(description, fill, job, case) if description and case else None,
                )
            )
    return sorted(lines, key=_order)


def is_new(line: PlanLine) -> bool:
    """Whether something is to be filled that has no job yet."""
    return line.verdict is not Verdict.SKIP and line.key is not None and not line.queued


def _texts(context: Context, description: Description | None) -> Iterator[tuple[Fingerprint, Form]]:
    """What may be filled of a context. The distilled version is not kept warm by replay: slots are for whole texts."""
    replays = description is not None and description.reuse is Reuse.NONE
    for version in (context.current,) if replays else context.versions:
        for form in context.forms:
            yield version, form


def obsolete(jobs: Sequence[Job], contexts: Sequence[Context], signatures: Collection[str]) -> list[Job]:
    """Unfinished jobs whose version or form no context has any more, or whose signature no engine that is known."""
    wanted = {(c.tenant, version, form) for c in contexts for version in c.versions for form in c.forms}
    gone = []
    for job in jobs:
        if job.state not in (JobState.QUEUED, JobState.LEASED):
            continue
        try:
            key = FillKey.parse(job.target)
        except ValueError:
            gone.append(job)
            continue
        if (key.tenant, key.fingerprint, key.form) not in wanted or key.signature not in signatures:
            gone.append(job)
    return gone


def _judge(
    description: Description,
    fill: Fill | Outline | None,
    job: Job | None,
    priority: Priority,
    *,
    wanted: bool,
    now_s: float,
) -> tuple[Verdict, str]:
    tokens = fill.total_tokens if fill else 0
    if tokens >= description.context_length:
        return Verdict.SKIP, f"not filled: {too_long(tokens, description.context_length)}"
    if fill and fill.state is FillState.READY and fill.stored_tokens >= tokens:
        return Verdict.SKIP, f"ready: {tokens:,} tokens, filled {span(now_s - fill.filled_at_s)} ago"
    again = Verdict.REFILL if fill and fill.state is not FillState.FILLING else Verdict.FILL
    if job is not None and job.state is not JobState.QUEUED:
        return (again, f"filling now: {_progress(job)}") if job.state is JobState.LEASED else (Verdict.SKIP, _dead(job))
    if job is not None and job.failures and job.not_before_s > now_s:
        if job.error.startswith(NO_ROOM):
            return again, f"waits, tried again in {span(job.not_before_s - now_s)}: {job.error}"
        tries = f"{job.failures} {'failure' if job.failures == 1 else 'failures'}"
        return again, f"again in {span(job.not_before_s - now_s)} after {tries}: {job.error}"
    if fill is None:
        return Verdict.FILL, f"never filled, {priority.why}"
    match fill.state:
        case FillState.FILLING:
            return Verdict.FILL, f"goes on at {fill.stored_tokens:,} of {tokens:,} tokens, {priority.why}"
        case FillState.EVICTED if not wanted:
            return Verdict.SKIP, f"not filled again before its next use: {fill.reason or 'evicted'}, {priority.why}"
        case _:
            return Verdict.REFILL, f"fill again: {fill.reason or fill.state}, {priority.why}"


def _lasts_until_s(description: Description, fill: Fill | Outline | None, job: Job | None, case: Case) -> float | None:
    tokens = fill.total_tokens if fill else 0
    if description.reuse is Reuse.NONE or tokens >= description.context_length:
        return None
    if job is not None:
        # What it asks for is set aside.
        return None if job.state is JobState.DEAD else case.now_s + case.ttl_s
    if fill and fill.state is FillState.READY and fill.stored_tokens >= tokens:
        return max(fill.filled_at_s, case.usage.last_access_s or 0.0) + case.ttl_s
    return case.now_s


def _replayed(description: Description, fill: Fill | Outline | None, *, warm: bool) -> str:
    """For an engine that does not use restored KV: its own slots are all that can hold a context."""
    tokens = fill.total_tokens if fill else 0
    if tokens >= description.context_length:
        return f"not kept warm: {too_long(tokens, description.context_length)}"
    if not warm:
        slots = capacity(description.slots)
        return f"not kept warm by replay: {slots} more valuable {'one takes' if slots == 1 else 'ones take'} the slots"
    if fill is not None and fill.state is FillState.READY:
        return f"kept warm by replay: {tokens:,} tokens in a slot"
    if fill is not None and fill.reason:
        return f"kept warm by replay: {fill.reason}"
    return "kept warm by replay: computed when idle"


def _progress(job: Job) -> str:
    return f"{job.done_tokens:,} of {job.total_tokens:,} tokens" if job.total_tokens else "just begun"


def _dead(job: Job) -> str:
    if job.failures <= 1:
        return f"not filled: {job.error}"
    return f"dead after {job.failures} failures: {job.error}"


def _order(line: PlanLine) -> tuple[bool, float, str, str, str]:
    skipped = line.verdict is Verdict.SKIP
    return skipped, 0.0 if skipped else -line.priority, line.context, line.tenant, line.form


def too_long(tokens: int, context_length: int) -> str:
    """Why a prefix cannot be filled at all: it leaves no room for a question."""
    return f"longer than the model's context ({tokens:,} > {context_length:,} tokens)"


def span(seconds: float) -> str:
    """A time span for people: `12 s`, `5 min`, `2 h`, `3 days`."""
    seconds = max(seconds, 0.0)
    for unit, name, name_of_one in ((86400.0, "days", "day"), (3600.0, "h", "h"), (60.0, "min", "min")):
        if seconds >= unit:
            count = int(seconds / unit)
            return f"{count} {name_of_one if count == 1 else name}"
    return f"{int(seconds)} s"
