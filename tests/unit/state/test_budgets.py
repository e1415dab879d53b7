"""What every budget book keeps, and the queue that charges it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from fakes.balance import balanced
from nightfill.errors import BudgetSpent, LeaseLost
from nightfill.state.budgets import BudgetRules, Period, Scope, scopes_of
from nightfill.state.jobs import Job, JobKind, JobState, Lease, QueueRules, Work, WorkerId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.stores import HostClock, Store
    from nightfill.state.state import State

A, B = WorkerId("a"), WorkerId("b")
RULES = QueueRules(budgets=BudgetRules(user_day=1000, tenant_day=5000, all_month=20_000))
ANN = Scope("acme", "ann")
DAY_S = 86400


class Books:
    """A store with budgets, whose books must balance after each step."""

    def __init__(self, store: Store) -> None:
        self.state: State = store.open(RULES)
        self.clock = store.clock

    async def check(self) -> None:
        await balanced(self.state, now_s=self.clock.wall_s)

    async def enqueue(self, target: str = "x", tokens: int = 400, **options: Any) -> Job:
        given: dict[str, Any] = {"tenant": "acme", "user": "ann", "label": "repo", "priority": 1.0, **options}
        job = await self.state.jobs.enqueue(
            kind=JobKind.FILL, target=target, total_tokens=tokens, reserve_tokens=tokens, **given
        )
        await self.check()
        return job

    async def lease(self, worker: WorkerId = A, lease_s: float = 30) -> Lease:
        lease = await self.state.jobs.lease(worker, kinds=[JobKind.FILL], lease_s=lease_s)
        assert lease is not None
        await self.check()
        return lease

    async def renew(self, lease: Lease, work: Work) -> Lease:
        renewed = await self.state.jobs.renew(
            lease, lease_s=30, done_tokens=work.tokens, total_tokens=lease.job.total_tokens, work=work
        )
        await self.check()
        return renewed

    async def line(self, scope: Scope = ANN, period: Period = Period.DAY) -> tuple[int, int, int | None]:
        """Spent, set aside, left."""
        (line,) = [line for line in await self.state.budgets.lines([scope]) if line.period is period]
        return line.spent, line.reserved, line.left


@pytest.fixture
async def books(store: Store) -> AsyncIterator[Books]:
    made = Books(store)
    yield made
    await made.check()


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def go_to(clock: HostClock, text: str) -> None:
    clock.advance(at(text) - clock.wall_s)


@pytest.mark.parametrize(
    ("now", "day", "month"),
    [
        ("2026-11-21 15:00", "2026-11-22", "2026-12-01"),
        ("2026-12-31 23:59:59", "2027-01-01", "2027-01-01"),
        ("2028-02-28 00:00", "2028-02-29", "2028-03-01"),
        ("2028-02-29 12:00", "2028-03-01", "2028-03-01"),
        ("2027-02-28 12:00", "2027-03-01", "2027-03-01"),
        ("2100-02-28 23:00", "2100-03-01", "2100-03-01"),
        ("1970-01-01 00:00", "1970-01-02", "1970-02-01"),
    ],
)
def test_a_period_ends_at_midnight_utc(now: str, day: str, month: str) -> None:
    assert Period.DAY.days(at(now)).stop * DAY_S == at(day)
    assert Period.MONTH.days(at(now)).stop * DAY_S == at(month)
    assert Period.DAY.days(at(now)).start * DAY_S == at(now[:10])
    assert Period.MONTH.days(at(now)).start * DAY_S == at(now[:8] + "01")


def test_a_job_of_nobody_is_paid_by_its_tenant_and_by_all() -> None:
    assert scopes_of("acme", "") == (Scope(), Scope("acme"))
    assert scopes_of("acme", "ann") == (Scope(), Scope("acme"), ANN)


async def test_what_a_job_may_need_is_set_aside_until_it_is_done(books: Books) -> None:
    job = await books.enqueue(tokens=400)
    assert job.reserved_tokens == 400
    for scope in (ANN, Scope("acme"), Scope()):
        assert (await books.line(scope))[:2] == (0, 400)
    lease = await books.renew(await books.lease(), Work(tokens=150, seconds=1.0, machine="spot"))
    assert lease.job.reserved_tokens == 250
    assert await books.line() == (150, 250, 600)
    await books.state.jobs.complete(lease, work=Work(tokens=300, seconds=2.0, machine="spot"))
    assert await books.line() == (300, 0, 700)
    assert (await books.line(Scope(), Period.MONTH))[:2] == (300, 0)


async def test_work_told_twice_is_charged_once(books: Books) -> None:
    await books.enqueue(tokens=400)
    lease = await books.lease()
    for tokens in (100, 100, 60, 120):
        lease = await books.renew(lease, Work(tokens=tokens, seconds=tokens / 100, machine="spot"))
    await books.state.jobs.complete(lease, work=Work(tokens=120, seconds=1.2, machine="spot"))
    assert await books.line() == (120, 0, 880)


async def test_each_lease_tells_its_own_work_anew(books: Books) -> None:
    await books.enqueue(tokens=400)
    await books.state.jobs.release(await books.lease(), work=Work(tokens=100, seconds=1.0))
    lease = await books.renew(await books.lease(B), Work(tokens=100, seconds=1.0))
    assert await books.line() == (200, 200, 600)
    await books.state.jobs.complete(lease, work=Work(tokens=150, seconds=1.5))
    assert await books.line() == (250, 0, 750)


async def test_a_job_that_needs_more_than_was_set_aside_is_charged_all_of_it(books: Books) -> None:
    await books.enqueue(tokens=400)
    lease = await books.renew(await books.lease(), Work(tokens=1300))
    assert await books.line() == (1300, 0, 0)
    await books.state.jobs.complete(lease, work=Work(tokens=1300))
    assert await books.line() == (1300, 0, 0)


async def test_an_old_holder_is_charged_nothing(books: Books) -> None:
    await books.enqueue(tokens=400)
    old = await books.lease(A)
    books.clock.advance(31)
    await books.lease(B)
    with pytest.raises(LeaseLost):
        await books.renew(old, Work(tokens=100))
    with pytest.raises(LeaseLost):
        await books.state.jobs.complete(old, work=Work(tokens=100))
    assert await books.line() == (0, 400, 600)


async def test_a_cancelled_or_dead_job_sets_nothing_aside(books: Books) -> None:
    jobs = books.state.jobs
    await books.enqueue("a/1", 100, priority=9)
    await jobs.fail(await books.lease(), error="x", retry_in_s=None, work=Work(tokens=40))
    await books.check()
    assert await books.line() == (40, 0, 960)
    second = await books.enqueue("b/2", 100)
    assert await jobs.cancel(second.id)
    await books.check()
    await books.enqueue("b/3", 100)
    await books.lease()
    assert await jobs.cancel_target(kind=JobKind.FILL, target_prefix="b/") == 1
    await books.check()
    assert await books.line() == (40, 0, 960)


async def test_a_failed_job_keeps_what_it_has_left_for_its_retry(books: Books) -> None:
    await books.enqueue(tokens=400)
    await books.state.jobs.fail(await books.lease(), error="x", retry_in_s=60, work=Work(tokens=100))
    assert await books.line() == (100, 300, 600)


async def test_a_job_whose_workers_all_fell_silent_sets_nothing_aside(books: Books) -> None:
    job = await books.enqueue(tokens=400)
    for _ in range(100):
        if await books.state.jobs.lease(A, kinds=[JobKind.FILL], lease_s=30) is None:
            break
        await books.check()
        books.clock.advance(31)
    dead = await books.state.jobs.get(job.id)
    assert dead is not None
    assert dead.state is JobState.DEAD
    assert await books.line() == (0, 0, 1000)


async def test_a_job_reclaimed_too_often_sets_nothing_aside(books: Books) -> None:
    await books.enqueue(tokens=400)
    for _ in range(100):
        if await books.state.jobs.lease(A, kinds=[JobKind.FILL], lease_s=30) is None:
            break
        await books.state.jobs.reclaim(A)
        await books.check()
    assert await books.line() == (0, 0, 1000)


async def test_a_spent_budget_refuses_with_all_that_there_is_to_know(books: Books) -> None:
    go_to(books.clock, "2028-02-29 22:00")
    await books.enqueue("t/1", 700)
    with pytest.raises(
        BudgetSpent, match=r"user ann of acme.* day.* 300 of 1000 .* 301 .*2028-03-01 00:00 UTC"
    ) as refused:
        await books.enqueue("t/2", 301)
    assert refused.value.resets_at_s == at("2028-03-01")
    assert [job.target for job in await books.state.jobs.jobs()] == ["t/1"]
    await books.enqueue("t/3", 300)
    assert await books.line() == (0, 1000, 0)


async def test_of_several_short_budgets_the_last_to_begin_anew_is_told(books: Books) -> None:
    go_to(books.clock, "2028-02-10 22:00")
    await books.state.budgets.set_limit(ANN, Period.MONTH, 100)
    with pytest.raises(BudgetSpent, match="month") as refused:
        await books.enqueue(tokens=1001)
    assert refused.value.resets_at_s == at("2028-03-01")


async def test_nobody_elses_budget_is_touched_but_the_shared_ones_are(books: Books) -> None:
    for n in range(5):
        await books.enqueue(f"t/{n}", 1000, user=f"user{n}")
    with pytest.raises(BudgetSpent, match="tenant acme"):
        await books.enqueue("t/9", 1, user="user9")
    await books.enqueue("t/9", 1000, tenant="other", user="user1")
    await books.enqueue("t/10", 4000, tenant="other", user="")
    with pytest.raises(BudgetSpent, match="tenant other"):
        await books.enqueue("t/11", 1, tenant="other", user="")


async def test_a_job_that_sets_nothing_aside_is_queued_whatever_is_spent(books: Books) -> None:
    await books.enqueue("t/1", 1000)
    assert (await books.enqueue("t/2", 0)).reserved_tokens == 0


async def test_at_midnight_nothing_is_spent_and_what_is_set_aside_stays_so(books: Books) -> None:
    go_to(books.clock, "2028-02-28 23:59")
    await books.enqueue("t/1", 500)
    lease = await books.renew(await books.lease(lease_s=600), Work(tokens=200))
    assert await books.line() == (200, 300, 500)
    go_to(books.clock, "2028-02-29 00:00:01")
    await books.check()
    assert await books.line() == (0, 300, 700)
    assert (await books.line(ANN, Period.MONTH))[:2] == (200, 300)
    lease = await books.renew(lease, Work(tokens=250))
    assert await books.line() == (50, 250, 700)
    go_to(books.clock, "2028-03-01 00:00")
    await books.check()
    assert (await books.line(ANN, Period.MONTH))[:2] == (0, 250)
    await books.state.jobs.complete(lease, work=Work(tokens=400))
    assert await books.line() == (150, 0, 850)


async def test_a_limit_of_its_own_goes_before_the_settings_and_can_be_taken_back(books: Books) -> None:
    budgets = books.state.budgets
    await budgets.set_limit(ANN, Period.DAY, 50)
    (line,) = [line for line in await budgets.lines() if line.period is Period.DAY]
    assert (line.scope, line.limit, line.own) == (ANN, 50, True)
    with pytest.raises(BudgetSpent):
        await books.enqueue(tokens=51)
    await budgets.set_limit(ANN, Period.DAY, 0)
    assert (await books.line())[2] == 0
    await budgets.set_limit(ANN, Period.DAY, None)
    assert await budgets.lines() == []
    assert (await books.line())[2] == 1000
    await books.enqueue(tokens=51)


async def test_lines_are_given_for_scopes_that_nothing_is_known_of(books: Books) -> None:
    lines = await books.state.budgets.lines([Scope("new", "bob"), Scope()])
    assert [(line.scope, line.period, line.limit, line.own, line.spent, line.reserved) for line in lines] == [
        (Scope("new", "bob"), Period.DAY, 1000, False, 0, 0),
        (Scope("new", "bob"), Period.MONTH, None, False, 0, 0),
        (Scope(), Period.DAY, None, False, 0, 0),
        (Scope(), Period.MONTH, 20_000, False, 0, 0),
    ]


async def test_a_dead_job_sets_aside_again_what_it_still_needs_when_it_is_brought_back(books: Books) -> None:
    jobs = books.state.jobs
    job = await books.enqueue("t/1", 800)
    await jobs.fail(await books.lease(), error="x", retry_in_s=None)
    assert await books.line() == (0, 0, 1000)
    other = await books.enqueue("t/2", 300)
    with pytest.raises(BudgetSpent):
        await jobs.retry(job.id)
    await books.check()
    dead = await jobs.get(job.id)
    assert dead is not None
    assert dead.state is JobState.DEAD
    await jobs.cancel(other.id)
    assert await jobs.retry(job.id)
    await books.check()
    assert await books.line() == (0, 800, 200)


async def test_many_at_once_do_not_set_aside_more_than_there_is(store: Store) -> None:
    handles = [store.open(RULES) for _ in range(4)]

    async def enqueue(n: int) -> bool:
        try:
            await handles[n % 4].jobs.enqueue(
                kind=JobKind.FILL, target=f"t/{n}", tenant="acme", user="ann", label="l", priority=1, reserve_tokens=90
            )
        except BudgetSpent:
            return False
        return True

    assert sum(await asyncio.gather(*(enqueue(n) for n in range(40)))) == 11
    await balanced(handles[0], now_s=store.clock.wall_s)


async def test_the_budgets_of_a_tenants_users_are_found_by_the_tenant(store: Store) -> None:
    state = store.open()
    await state.budgets.set_limit(Scope("t", "limited"), Period.MONTH, 5)
    await state.budgets.set_limit(Scope("t"), Period.DAY, 5)
    await state.budgets.set_limit(Scope("other", "ann"), Period.DAY, 5)
    await state.jobs.enqueue(
        kind=JobKind.FILL, target="x", tenant="t", label="x", priority=1.0, user="busy", reserve_tokens=3
    )
    assert await state.budgets.users("t") == [Scope("t", "busy"), Scope("t", "limited")]
    assert await state.budgets.users("nobody") == []
