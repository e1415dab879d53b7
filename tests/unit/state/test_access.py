"""What every access log keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nightfill.contexts.context import ContextName, Fingerprint, Form, Tenant
from nightfill.state.access import Access, Usage

if TYPE_CHECKING:
    from fakes.stores import HostClock
    from nightfill.state.access import AccessLog
    from nightfill.state.state import State

T, REPO = Tenant("default"), ContextName("repo")


def row(
    at_s: float,
    *,
    tenant: Tenant = T,
    context: ContextName | None = REPO,
    broken: bool = False,
) -> Access:
    return Access(
        at_s=at_s,
        tenant=tenant,
        context=context,
        fingerprint=Fingerprint("f" * 64),
        form=Form.CHAT,
        model="m",
        layer="fill",
        prompt_tokens=10,
        promised_tokens=8,
        reused_tokens=8,
        output_tokens=3,
        ttft_s=0.1,
        total_s=0.2,
        restore_s=0.01,
        status=200,
        broken=broken,
    )


async def test_a_context_never_used_says_so(access: AccessLog) -> None:
    assert await access.usage(T, REPO, now_s=1e9) == Usage(last_access_s=None, accesses_7d=0, broken_7d=0)


async def test_usage_counts_seven_days_of_this_context_alone(access: AccessLog, clock: HostClock) -> None:
    now_s, day_s = clock.wall_s, 86400.0
    await access.append(
        [
            row(now_s - 8 * day_s),
            row(now_s - 6 * day_s),
            row(now_s - 60),
            row(now_s + 7200),
            row(now_s - 1, context=ContextName("manual")),
            row(now_s - 1, context=None),
            row(now_s - 1, tenant=Tenant("other")),
        ]
    )
    assert await access.usage(T, REPO, now_s=now_s) == Usage(
        last_access_s=now_s - 60,
        accesses_7d=2,
        broken_7d=0,
        hours={int(now_s - ago_s) // 3600: 1 for ago_s in (8 * day_s, 6 * day_s, 60)},
    )


async def test_hours_with_an_access_are_kept_for_four_weeks(access: AccessLog, clock: HostClock) -> None:
    now_s, hour = clock.wall_s, int(clock.wall_s // 3600)
    ago = [0, 0, 1, 167, 168, 671, 672]
    await access.append([row((hour - hours) * 3600.0 + 1, broken=hours > 1) for hours in ago])
    usage = await access.usage(T, REPO, now_s=now_s)
    assert dict(usage.hours) == {hour: 2, hour - 1: 1, hour - 167: 1, hour - 168: 1, hour - 671: 1}
    assert (usage.accesses_7d, usage.broken_7d, usage.last_access_s) == (4, 1, hour * 3600.0 + 1)
    earlier = await access.usage(T, REPO, now_s=now_s - 3600)
    assert (earlier.accesses_7d, earlier.last_access_s) == (3, (hour - 1) * 3600.0 + 1)


async def test_a_models_hours_are_those_of_all_requests_that_it_had_to_answer(
    access: AccessLog, clock: HostClock
) -> None:
    now_s, hour = clock.wall_s, int(clock.wall_s // 3600)
    asked = [row(now_s), row(now_s, tenant=Tenant("other"), context=None), row(now_s - 7200)]
    await access.append([*asked, replace(row(now_s), layer="answer"), replace(row(now_s), model="n")])
    assert dict(await access.model_hours("m", now_s=now_s)) == {hour: 2, hour - 2: 1}
    assert dict(await access.model_hours("n", now_s=now_s)) == {hour: 1}
    assert dict(await access.model_hours("repo", now_s=now_s)) == {}


async def test_hours_outlive_the_rows_that_they_count(access: AccessLog, clock: HostClock) -> None:
    await access.append([row(clock.wall_s - 7200)])
    await access.prune(older_than_s=60)
    assert await access.recent() == []
    assert (await access.usage(T, REPO, now_s=clock.wall_s)).accesses_7d == 1


async def test_broken_promises_are_counted_as_they_were_judged(access: AccessLog, clock: HostClock) -> None:
    at_s = clock.wall_s
    await access.append([row(at_s), row(at_s, broken=True), row(at_s, broken=True), row(at_s - 8 * 86400, broken=True)])
    assert (await access.usage(T, REPO, now_s=at_s)).broken_7d == 2


async def test_the_newest_rows_come_first_and_as_they_were(access: AccessLog) -> None:
    billed = replace(row(1.0), user="ann", machine="spot", saved_tokens=5, saved_s=0.25)
    rows = [billed, row(3.0, context=None), row(2.0, tenant=Tenant("other"))]
    await access.append(rows)
    await access.append([])
    assert await access.recent() == [rows[1], rows[2], rows[0]]
    assert await access.recent(tenant=T) == [rows[1], rows[0]]
    assert await access.recent(context=REPO, limit=1) == [rows[2]]


async def test_old_rows_are_dropped(access: AccessLog, clock: HostClock) -> None:
    await access.append([row(clock.wall_s - 100), row(clock.wall_s - 10)])
    assert await access.prune(older_than_s=50) == 1
    assert [kept.at_s for kept in await access.recent()] == [clock.wall_s - 10]


async def test_engine_notes_are_replaced_listed_and_forgotten(state: State, clock: HostClock) -> None:
    await state.engines.put("b", {"model": "x", "slots": 2, "embeddings": False})
    await state.engines.put("a", {})
    clock.advance(1)
    await state.engines.put("b", {"model": "y"})
    note = await state.engines.get("b")
    assert note is not None
    assert (dict(note.body), note.seen_at_s) == ({"model": "y"}, clock.wall_s)
    assert [n.name for n in await state.engines.notes()] == ["a", "b"]
    assert await state.engines.forget("b")
    assert not await state.engines.forget("b")
    assert await state.engines.get("b") is None
