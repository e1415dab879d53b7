"""What every ledger keeps: the sums that the queue and the access log write."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nightfill.contexts.context import ContextName, Fingerprint, Form, Tenant
from nightfill.state.access import Access
from nightfill.state.jobs import JobKind, Work, WorkerId
from nightfill.state.ledger import LedgerLine

if TYPE_CHECKING:
    from fakes.stores import HostClock
    from nightfill.state.state import State

DAY_S = 86400
WORKER = WorkerId("w")


async def work(state: State, *works: Work, kind: JobKind = JobKind.FILL, context: str = "repo", **of: Any) -> None:
    """A job that tells of its work at renewals, and of the last one when it is done."""
    given = {"tenant": "acme", "user": "ann", **of}
    await state.jobs.enqueue(kind=kind, target=context, label=context, priority=1.0, **given)
    lease = await state.jobs.lease(WORKER, kinds=[kind], lease_s=30)
    assert lease is not None
    for told in works[:-1]:
        lease = await state.jobs.renew(lease, lease_s=30, done_tokens=told.tokens, total_tokens=900, work=told)
    await state.jobs.complete(lease, work=works[-1])


async def lines(state: State, clock: HostClock, **of: Any) -> list[LedgerLine]:
    today = int(clock.wall_s // DAY_S)
    return await state.ledger.lines(since_day=today - 40, until_day=today, **of)


def use(clock: HostClock, **of: Any) -> Access:
    row = Access(
        at_s=clock.wall_s,
        tenant=Tenant("acme"),
        context=ContextName("repo"),
        fingerprint=Fingerprint("f" * 64),
        form=Form.CHAT,
        model="m",
        layer="fill",
        prompt_tokens=100,
        promised_tokens=80,
        reused_tokens=80,
        output_tokens=3,
        ttft_s=0.1,
        total_s=0.2,
        restore_s=0.01,
        status=200,
        user="ann",
        machine="big",
        saved_tokens=80,
        saved_s=0.5,
    )
    return replace(row, **of)


async def test_what_jobs_computed_is_summed_by_day_context_and_machine(state: State, clock: HostClock) -> None:
    day = int(clock.wall_s // DAY_S)
    spot, big = "spot", "big"
    await work(state, Work(tokens=100, seconds=1.0, machine=spot), Work(tokens=300, seconds=2.5, machine=spot))
    await work(state, Work(tokens=50, seconds=0.5, machine=spot), kind=JobKind.VERIFY)
    await work(state, Work(tokens=7, seconds=0.25, machine=big), context="manual", user="")
    clock.advance(DAY_S)
    await work(state, Work(tokens=1, seconds=1.0, machine=spot))
    made: dict[str, Any] = {"tenant": "acme", "user": "ann", "context": "repo", "machine": spot}
    assert await lines(state, clock) == [
        LedgerLine(
            day=day,
            tenant="acme",
            user="",
            context="manual",
            machine=big,
            background_tokens=7,
            background_s=0.25,
            fills=1,
        ),
        LedgerLine(day=day, **made, background_tokens=350, background_s=3.0, fills=1),
        LedgerLine(day=day + 1, **made, background_tokens=1, background_s=1.0, fills=1),
    ]


async def test_work_of_a_failed_or_released_job_was_paid_all_the_same(state: State, clock: HostClock) -> None:
    jobs = state.jobs
    await jobs.enqueue(kind=JobKind.FILL, target="x", tenant="acme", user="ann", label="repo", priority=1.0)
    for _ in range(2):
        lease = await jobs.lease(WORKER, kinds=[JobKind.FILL], lease_s=30)
        assert lease is not None
        await jobs.release(lease, work=Work(tokens=10, seconds=0.5, machine="spot"))
    lease = await jobs.lease(WORKER, kinds=[JobKind.FILL], lease_s=30)
    assert lease is not None
    await jobs.fail(lease, error="x", retry_in_s=None, work=Work(tokens=5, seconds=0.5, machine="spot"))
    (line,) = await lines(state, clock)
    assert (line.background_tokens, line.background_s, line.fills) == (25, 1.5, 0)


async def test_answered_requests_add_what_their_fills_saved(state: State, clock: HostClock) -> None:
    await state.access.append(
        [
            use(clock),
            use(clock, layer="cold", saved_tokens=0, saved_s=0.0),
            use(clock, layer="answer", saved_tokens=100, saved_s=1.25),
            use(clock, status=503, saved_tokens=0, saved_s=0.0, layer="cold"),
            use(clock, context=None),
        ]
    )
    day = int(clock.wall_s // DAY_S)
    assert await lines(state, clock) == [
        LedgerLine(
            day=day,
            tenant="acme",
            user="ann",
            context="repo",
            machine="big",
            requests=3,
            hits=2,
            saved_tokens=180,
            saved_s=1.75,
        )
    ]


async def test_cost_and_saving_of_one_machine_share_a_line(state: State, clock: HostClock) -> None:
    await work(state, Work(tokens=300, seconds=2.5, machine="big"))
    await state.access.append([use(clock)])
    (line,) = await lines(state, clock)
    assert (line.background_tokens, line.requests, line.saved_tokens) == (300, 1, 80)


async def test_lines_are_given_by_days_tenant_and_context(state: State, clock: HostClock) -> None:
    today = int(clock.wall_s // DAY_S)
    uses = [
        use(clock, at_s=clock.wall_s - ago * DAY_S, tenant=Tenant(tenant), context=ContextName(context))
        for ago in (2, 1, 0)
        for tenant in ("b", "a")
        for context in ("y", "x")
    ]
    await state.access.append(uses)

    async def keys(**of: Any) -> list[tuple[int, str, str]]:
        return [(line.day - today, line.tenant, line.context) for line in await state.ledger.lines(**of)]

    everything = await keys(since_day=today - 9, until_day=today)
    assert everything == [(-ago, tenant, name) for ago in (2, 1, 0) for tenant in "ab" for name in "xy"]
    assert await keys(since_day=today - 1, until_day=today - 1, tenant="a") == [(-1, "a", "x"), (-1, "a", "y")]
    assert await keys(since_day=today, until_day=today, context="y") == [(0, "a", "y"), (0, "b", "y")]
    assert await keys(since_day=today, until_day=today, tenant="b", context="x") == [(0, "b", "x")]
    assert await keys(since_day=today + 1, until_day=today + 9) == []


async def test_old_lines_are_dropped(state: State, clock: HostClock) -> None:
    today = int(clock.wall_s // DAY_S)
    await state.access.append([use(clock, at_s=clock.wall_s - ago * DAY_S) for ago in (3, 2, 1)])
    assert await state.ledger.prune(before_day=today - 1) == 2
    assert [line.day for line in await lines(state, clock)] == [today - 1]
    assert await state.ledger.prune(before_day=today - 1) == 0
