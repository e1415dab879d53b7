"""What is to be looked at, and when: in every store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nightfill.contexts.context import (
    Context,
    ContextName,
    Fill,
    FillKey,
    FillState,
    Fingerprint,
    FolderSource,
    Form,
    Signature,
    Source,
    Tenant,
    Text,
    TextSource,
)
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.state.access import Access
from nightfill.state.agenda import CLAIM_S, Due, Looked
from nightfill.state.budgets import BudgetRules, Period, Scope
from nightfill.state.jobs import Job, JobKind, JobState, QueueRules, WorkerId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fakes.stores import HostClock, Store
    from nightfill.state.state import State

T, OTHER = Tenant("default"), Tenant("other")
SIGNATURE = Signature("5" * 64)
WORKER = WorkerId("w")
HOUR_S = 3600.0


async def put(state: State, name: str, text: str = "", *, tenant: Tenant = T, source: Source | None = None) -> Context:
    content = Text(text or f"the text of {name}")
    return await state.book.put(
        tenant=tenant,
        name=ContextName(name),
        source=source or TextSource(),
        content=content,
        fingerprint=fingerprint_of(content),
        forms=[Form.CHAT],
    )


def fill_of(context: Context, state: FillState = FillState.READY) -> Fill:
    key = FillKey(tenant=context.tenant, fingerprint=context.current, form=Form.CHAT, signature=SIGNATURE)
    return Fill(key=key, state=state, tokens=(1, 2, 3), stored_tokens=3, filled_at_s=5.0, fill_seconds=0.5)


async def queue(state: State, context: Context, *, tokens: int = 0) -> Job:
    return await state.jobs.enqueue(
        kind=JobKind.FILL,
        target=str(fill_of(context).key),
        tenant=context.tenant,
        label=context.name,
        priority=1.0,
        reserve_tokens=tokens,
    )


def access(context: Context, layer: str, at_s: float) -> Access:
    return Access(
        at_s=at_s,
        tenant=context.tenant,
        context=context.name,
        fingerprint=context.current,
        form=Form.CHAT,
        model="m",
        layer=layer,
        prompt_tokens=3,
        promised_tokens=0,
        reused_tokens=0,
        output_tokens=1,
        ttft_s=0.1,
        total_s=0.2,
        restore_s=0.0,
        status=200,
    )


def names(found: list[Due]) -> list[str]:
    return [due.context.name for due in found]


async def look(state: State, *, again_in_s: float = HOUR_S) -> list[str]:
    """What is due, looked at."""
    found = await state.agenda.due(limit=100)
    await state.agenda.looked([Looked(due=due, again_in_s=again_in_s) for due in found])
    return names(found)


async def test_a_new_context_is_due_with_all_that_is_needed_to_plan_it(state: State, clock: HostClock) -> None:
    context = await put(state, "repo")
    fill = fill_of(context)
    await state.book.put_fill(fill)
    job = await queue(state, context)
    await state.access.append([access(context, "cold", clock.wall_s)])
    (due,) = await state.agenda.due(limit=10)
    assert (due.context, due.jobs, due.shared, due.changed) == (context, (job,), False, True)
    assert (due.usage.accesses_7d, due.usage.last_access_s) == (1, clock.wall_s)
    (outline,) = due.fills
    assert (outline.key, outline.state, outline.total_tokens, outline.stored_tokens) == (fill.key, fill.state, 3, 3)
    assert (outline.filled_at_s, outline.fill_seconds) == (5.0, 0.5)


async def test_what_one_took_no_other_is_given_until_it_may_have_died(store: Store) -> None:
    one, other = store.open(), store.open()
    for name in "abc":
        await put(one, name)
    first = names(await one.agenda.due(limit=2))
    assert sorted(first + names(await other.agenda.due(limit=2))) == ["a", "b", "c"]
    assert await other.agenda.due(limit=2) == []
    store.clock.advance(CLAIM_S + 1)
    assert sorted(names(await other.agenda.due(limit=10))) == ["a", "b", "c"]


async def test_what_was_looked_at_is_due_again_in_its_time(state: State, clock: HostClock) -> None:
    await put(state, "repo")
    assert await look(state, again_in_s=HOUR_S) == ["repo"]
    clock.advance(HOUR_S - 1)
    assert await look(state) == []
    clock.advance(2)
    (due,) = await state.agenda.due(limit=10)
    assert not due.changed


async def end(state: State, context: Context, retry_in_s: float | None) -> None:
    await queue(state, context)
    lease = await state.jobs.lease(WORKER, kinds=[JobKind.FILL], lease_s=30)
    assert lease is not None
    await state.jobs.fail(lease, error="no", retry_in_s=retry_in_s)


async def cancel(state: State, context: Context) -> None:
    await state.jobs.cancel((await queue(state, context)).id)


CHANGES: dict[str, Callable[[State, Context], Awaitable[object]]] = {
    "put": lambda state, context: put(state, context.name),
    "replaced": lambda state, context: state.book.replace(
        context, content=Text("new"), fingerprint=fingerprint_of(Text("new"))
    ),
    "distilled": lambda state, context: state.book.put_distilled(
        context, content=Text("short"), fingerprint=fingerprint_of(Text("short"))
    ),
    "ready": lambda state, context: state.book.put_fill(fill_of(context)),
    "stale": lambda state, context: state.book.mark_fill(
        fill_of(context).key, state=FillState.STALE, reason="broken promise"
    ),
    "dropped": lambda state, context: state.book.drop_fill(fill_of(context).key),
    "missed": lambda state, context: state.access.append([access(context, "cold", 1_700_000_000.0)]),
    "dead": lambda state, context: end(state, context, None),
    "cancelled": cancel,
}


@pytest.mark.parametrize("change", sorted(CHANGES))
async def test_what_changes_is_due_at_once_also_while_it_is_looked_at(state: State, change: str) -> None:
    context = await put(state, "repo")
    await put(state, "another")
    if change in ("stale", "dropped"):
        await state.book.put_fill(fill_of(context))
    found = await state.agenda.due(limit=10)
    await CHANGES[change](state, context)
    await state.agenda.looked([Looked(due=due, again_in_s=HOUR_S) for due in found])
    assert await look(state) == ["repo"]
    context = await state.book.get(T, ContextName("repo")) or context
    assert await look(state) == []


async def test_what_changes_nothing_makes_nothing_due(state: State, clock: HostClock) -> None:
    context = await put(state, "repo")
    await state.book.put_fill(fill_of(context))
    await look(state)
    await state.book.put_fill(replace(fill_of(context), fill_seconds=1.0))
    await state.book.put_fill(replace(fill_of(context), state=FillState.FILLING))
    await state.access.append([access(context, "fill", clock.wall_s), access(context, "answer", clock.wall_s)])
    await queue(state, context)
    await state.book.checked(T, ContextName("repo"))
    assert await look(state) == []


async def test_what_has_changed_comes_before_what_is_late(state: State, clock: HostClock) -> None:
    for name in ("late", "later", "new"):
        await put(state, name)
    await look(state)
    clock.advance(10 * HOUR_S)
    await put(state, "new")
    assert names(await state.agenda.due(limit=1)) == ["new"]


async def test_jobs_of_a_version_are_cancelled_when_its_last_context_leaves_it(state: State) -> None:
    one, other = await put(state, "one", "same"), await put(state, "other", "same")
    await state.jobs.enqueue(kind=JobKind.VERIFY, target=str(fill_of(one).key), tenant=T, label="one", priority=1.0)
    job = await queue(state, one)
    assert all(due.shared for due in await state.agenda.due(limit=10))
    await put(state, "one", "new")
    assert await of(state, job) is JobState.QUEUED
    await state.book.delete(T, ContextName("other"))
    assert await of(state, job) is JobState.CANCELLED
    assert (await state.jobs.depth(kinds=[JobKind.FILL])).due == 0
    assert (await state.jobs.depth(kinds=[JobKind.VERIFY])).due == 1
    assert other.current == one.current


async def test_a_leased_job_of_a_version_that_is_replaced_is_lost_and_gives_its_budget_back(store: Store) -> None:
    state = store.open(QueueRules(budgets=BudgetRules(all_day=100)))
    job = await queue(state, await put(state, "repo"), tokens=100)
    assert await state.jobs.lease(WORKER, kinds=[JobKind.FILL], lease_s=30)
    await put(state, "repo", "new")
    assert await of(state, job) is JobState.CANCELLED
    (day, _) = await state.budgets.lines([Scope()])
    assert (day.reserved, await state.jobs.holders()) == (0, [])


async def test_a_job_that_distils_a_version_is_cancelled_with_it(state: State) -> None:
    context = await put(state, "repo")
    target = f"{T}/{context.current}/{context.name}"
    job = await state.jobs.enqueue(kind=JobKind.DISTIL, target=target, tenant=T, label="repo", priority=1.0)
    await put(state, "repo", "new")
    assert await of(state, job) is JobState.CANCELLED


async def of(state: State, job: Job) -> JobState:
    found = await state.jobs.get(job.id)
    assert found is not None
    return found.state


async def waiting(state: State, scope: Scope) -> None:
    """`low`, `high` and `middle` wait for a budget."""
    priorities = {"low": 1.0, "high": 3.0, "middle": 2.0}
    for name in priorities:
        await put(state, name)
    found = await state.agenda.due(limit=10)
    await state.agenda.looked(
        [Looked(due=due, again_in_s=HOUR_S, priority=priorities[due.context.name], waits_for=scope) for due in found]
    )


@pytest.mark.parametrize("scope", [Scope(), Scope(T), Scope(T, "ann")])
async def test_those_that_wait_for_a_budget_are_due_when_its_limit_is_set(state: State, scope: Scope) -> None:
    await waiting(state, scope)
    await state.budgets.set_limit(Scope(OTHER), Period.DAY, 5)
    assert await state.agenda.due(limit=10) == []
    await state.budgets.set_limit(scope, Period.DAY, 5)
    assert sorted(names(await state.agenda.due(limit=10))) == ["high", "low", "middle"]


async def test_of_those_that_wait_the_most_valuable_are_due_when_a_job_gives_something_back(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await state.jobs.enqueue(
        kind=JobKind.DISTIL, target="x", tenant=T, label="x", priority=1.0, user="ann", reserve_tokens=10
    )
    many = [f"c{n}" for n in range(12)]
    for name in many:
        await put(state, name)
    found = await state.agenda.due(limit=20)
    await state.agenda.looked(
        [
            Looked(due=due, again_in_s=HOUR_S, priority=float(due.context.name[1:]), waits_for=Scope(T, "ann"))
            for due in found
        ]
    )
    await state.jobs.cancel(job.id)
    assert sorted(names(await state.agenda.due(limit=20))) == sorted(many[4:])


async def test_who_waits_no_more_is_not_woken(state: State) -> None:
    await waiting(state, Scope())
    await put(state, "low")
    await look(state)
    await state.book.delete(T, ContextName("high"))
    await state.budgets.set_limit(Scope(), Period.DAY, 5)
    assert names(await state.agenda.due(limit=10)) == ["middle"]


async def test_what_is_deleted_is_not_due(state: State) -> None:
    await put(state, "repo")
    await state.book.delete(T, ContextName("repo"))
    assert await state.agenda.due(limit=10) == []


async def test_a_walk_comes_to_all_contexts_of_all_tenants(state: State) -> None:
    for n in range(7):
        await put(state, f"c{n}", tenant=OTHER if n % 2 else T)
    await look(state)
    found, place = await state.agenda.after("", limit=2)
    while place:
        more, place = await state.agenda.after(place, limit=2)
        found += more
    assert sorted(set(names(found))) == [f"c{n}" for n in range(7)]
    assert not any(due.changed for due in found)
    assert await state.agenda.after("", limit=100) != ([], "")


async def test_a_look_in_passing_counts_unless_something_changed(state: State) -> None:
    context = await put(state, "repo")
    await look(state)
    (due,), _ = await state.agenda.after("", limit=10)
    await state.agenda.looked([Looked(due=due, again_in_s=-1.0)])
    assert await look(state) == ["repo"]
    (due,), _ = await state.agenda.after("", limit=10)
    await state.book.put_fill(fill_of(context))
    await state.agenda.looked([Looked(due=due, again_in_s=HOUR_S)])
    assert await look(state) == ["repo"]


async def test_the_contexts_of_a_version_are_found_by_it(state: State) -> None:
    one = await put(state, "one", "same")
    await put(state, "two", "same")
    await put(state, "three", "same", tenant=OTHER)
    short = fingerprint_of(Text("short"))
    await state.book.put_distilled(one, content=Text("short"), fingerprint=short)
    assert sorted(names(await state.agenda.having(T, one.current))) == ["one", "two"]
    assert names(await state.agenda.having(T, short)) == ["one"]
    assert await state.agenda.having(T, Fingerprint("0" * 64)) == []


async def test_the_book_tells_in_short_what_it_holds(state: State) -> None:
    assert await state.book.is_empty()
    assert await state.book.tenants() == []
    folder = await put(state, "folder", source=FolderSource(path="/srv"))
    await put(state, "text", tenant=OTHER)
    assert not await state.book.is_empty()
    assert await state.book.tenants() == [T, OTHER]
    assert await state.book.watched() == [folder]
    await state.book.put_fill(fill_of(folder))
    (outline,) = [one async for some in state.book.outlines() for one in some]
    assert (outline.key, outline.total_tokens) == (fill_of(folder).key, 3)
    assert await state.book.outlines_of(T, folder.current) == [outline]
    assert await state.book.outlines_of(OTHER, folder.current) == []
    await put(state, "folder")
    assert await state.book.watched() == []
