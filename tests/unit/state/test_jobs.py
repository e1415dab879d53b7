"""What every job queue keeps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from nightfill.errors import LeaseLost, QueueFull
from nightfill.state.jobs import (
    ASKED,
    Job,
    JobId,
    JobKind,
    JobQueue,
    JobState,
    Lease,
    QueueDepth,
    QueueRules,
    Trouble,
    WorkerId,
)

if TYPE_CHECKING:
    from fakes.stores import HostClock, Store

A, B = WorkerId("worker-a"), WorkerId("worker-b")


async def enqueue(jobs: JobQueue, target: str = "t/1", priority: float = 1.0, **of: Any) -> Job:
    given = {"tenant": "t", "label": "repo", **of}
    return await jobs.enqueue(kind=JobKind.FILL, target=target, priority=priority, **given)


async def lease(jobs: JobQueue, worker: WorkerId = A, lease_s: float = 30) -> Lease | None:
    return await jobs.lease(worker, kinds=[JobKind.FILL], lease_s=lease_s)


async def leased(jobs: JobQueue, worker: WorkerId = A) -> Lease:
    held = await lease(jobs, worker)
    assert held is not None
    return held


async def state_of(jobs: JobQueue, job_id: JobId) -> Job:
    job = await jobs.get(job_id)
    assert job is not None
    return job


async def test_a_queue_without_jobs_leases_nothing(jobs: JobQueue) -> None:
    assert await lease(jobs) is None


async def test_the_highest_priority_goes_first_and_the_older_among_equals(jobs: JobQueue) -> None:
    made = [await enqueue(jobs, f"t/{n}", priority) for n, priority in enumerate([1, 3, 3, 2])]
    order = [(await leased(jobs)).job.id for _ in made]
    assert order == [made[1].id, made[2].id, made[3].id, made[0].id]


async def test_a_target_has_one_unfinished_job_whose_priority_is_the_last_given(jobs: JobQueue) -> None:
    first = await enqueue(jobs, priority=2)
    assert (await enqueue(jobs, priority=5)).priority == 5
    again = await enqueue(jobs, priority=1)
    assert (again.id, again.priority) == (first.id, 1)
    assert len(await jobs.jobs()) == 1


async def test_what_a_person_asked_for_keeps_its_priority(jobs: JobQueue) -> None:
    await enqueue(jobs, priority=2)
    assert (await enqueue(jobs, priority=ASKED)).priority == ASKED
    assert (await enqueue(jobs, priority=1)).priority == ASKED


async def test_a_finished_target_may_be_queued_anew(jobs: JobQueue) -> None:
    first = await enqueue(jobs)
    await jobs.complete(await leased(jobs))
    second = await enqueue(jobs)
    assert second.id != first.id
    assert (await state_of(jobs, first.id)).state is JobState.DONE


async def test_a_leased_job_is_not_leased_again_before_its_lease_expires(jobs: JobQueue, clock: HostClock) -> None:
    await enqueue(jobs)
    held = await leased(jobs)
    assert held.expires_at_s == pytest.approx(clock.wall_s + 30)
    clock.advance(29.9)
    assert await lease(jobs, B) is None


async def test_the_job_of_a_silent_worker_goes_to_the_next_one(jobs: JobQueue, clock: HostClock) -> None:
    job = await enqueue(jobs)
    await leased(jobs, A)
    clock.advance(30.1)
    claimed = await leased(jobs, B)
    assert (claimed.job.id, claimed.fence, claimed.job.lost, claimed.worker) == (job.id, 2, 1, B)


@pytest.mark.parametrize("jump_s", [-7 * 3600.0, 7 * 3600.0])
async def test_a_wall_clock_that_jumps_by_hours_neither_ends_nor_prolongs_a_lease(
    jobs: JobQueue, clock: HostClock, jump_s: float
) -> None:
    await enqueue(jobs)
    await leased(jobs, A)
    clock.set_wall(jump_s)
    clock.advance(29)
    assert await lease(jobs, B) is None
    clock.advance(2)
    assert (await leased(jobs, B)).job.lost == 1


async def test_a_wall_clock_set_back_does_not_delay_a_retry_by_hours(jobs: JobQueue, clock: HostClock) -> None:
    await enqueue(jobs)
    await jobs.fail(await leased(jobs), error="engine died", retry_in_s=60)
    clock.set_wall(-5 * 3600)
    clock.advance(60)
    assert await lease(jobs) is not None


async def test_an_old_holder_cannot_write_once_another_worker_holds_the_job(jobs: JobQueue, clock: HostClock) -> None:
    await enqueue(jobs)
    old = await leased(jobs, A)
    clock.advance(31)
    new = await leased(jobs, B)
    with pytest.raises(LeaseLost):
        await jobs.renew(old, lease_s=30, done_tokens=1, total_tokens=2)
    with pytest.raises(LeaseLost):
        await jobs.complete(old)
    with pytest.raises(LeaseLost):
        await jobs.release(old)
    with pytest.raises(LeaseLost):
        await jobs.fail(old, error="x", retry_in_s=None)
    assert (await state_of(jobs, new.job.id)).worker == B


async def test_a_worker_that_lost_and_won_a_job_again_cannot_use_its_first_lease(
    jobs: JobQueue, clock: HostClock
) -> None:
    await enqueue(jobs)
    old = await leased(jobs, A)
    clock.advance(31)
    await leased(jobs, A)
    with pytest.raises(LeaseLost):
        await jobs.complete(old)


async def test_a_late_renewal_holds_the_job_while_nobody_else_took_it(jobs: JobQueue, clock: HostClock) -> None:
    await enqueue(jobs)
    held = await leased(jobs, A)
    clock.advance(45)
    held = await jobs.renew(held, lease_s=30, done_tokens=7, total_tokens=9)
    assert await lease(jobs, B) is None
    assert (held.job.done_tokens, held.job.total_tokens) == (7, 9)


async def test_a_released_job_is_free_at_once_and_nothing_is_held_against_it(jobs: JobQueue) -> None:
    await enqueue(jobs)
    await jobs.release(await leased(jobs, A))
    again = await leased(jobs, B)
    assert (again.fence, again.job.failures, again.job.lost) == (2, 0, 0)


async def test_a_failed_job_waits_for_its_retry(jobs: JobQueue, clock: HostClock) -> None:
    job = await enqueue(jobs)
    await jobs.fail(await leased(jobs), error="disk full", retry_in_s=8)
    failed = await state_of(jobs, job.id)
    assert (failed.state, failed.failures, failed.error) == (JobState.QUEUED, 1, "disk full")
    assert await lease(jobs) is None
    clock.advance(8)
    assert (await leased(jobs)).job.id == job.id


async def test_a_job_given_up_stays_dead_until_somebody_retries_it(jobs: JobQueue) -> None:
    job = await enqueue(jobs)
    await jobs.fail(await leased(jobs), error="too long", retry_in_s=None)
    same = await enqueue(jobs, priority=99)
    assert (same.id, same.state, same.priority) == (job.id, JobState.DEAD, 1)
    assert await lease(jobs) is None
    assert await jobs.retry(job.id)
    assert not await jobs.retry(job.id)
    assert (await leased(jobs)).job.failures == 0


async def test_a_cancelled_job_ends_its_workers_lease(jobs: JobQueue) -> None:
    job = await enqueue(jobs)
    held = await leased(jobs)
    assert await jobs.cancel(job.id)
    assert not await jobs.cancel(job.id)
    with pytest.raises(LeaseLost):
        await jobs.renew(held, lease_s=30, done_tokens=0, total_tokens=0)
    assert await lease(jobs) is None


async def test_cancelling_by_target_takes_the_prefix_literally_and_forgets_the_dead(jobs: JobQueue) -> None:
    await enqueue(jobs, "a_b/1/x")
    await enqueue(jobs, "a_b/2/x", priority=9)
    await jobs.fail(await leased(jobs), error="x", retry_in_s=None)
    other = await enqueue(jobs, "axb/1/x")
    assert await jobs.cancel_target(kind=JobKind.FILL, target_prefix="a_b/") == 1
    assert [job.id for job in await jobs.jobs(states=[JobState.QUEUED, JobState.DEAD])] == [other.id]


async def test_a_job_that_silences_every_worker_is_dead_at_last(jobs: JobQueue, clock: HostClock) -> None:
    job = await enqueue(jobs)
    for _ in range(100):
        if await lease(jobs) is None:
            break
        clock.advance(31)
    dead = await state_of(jobs, job.id)
    assert dead.state is JobState.DEAD
    assert "fell silent" in dead.error


async def test_what_reached_the_store_forgives_earlier_losses_and_failures(jobs: JobQueue, clock: HostClock) -> None:
    job = await enqueue(jobs)
    await leased(jobs)
    clock.advance(31)
    await jobs.fail(await leased(jobs), error="x", retry_in_s=0.0)
    held = await leased(jobs)
    assert (held.job.lost, held.job.failures) == (1, 1)
    held = await jobs.renew(held, lease_s=30, done_tokens=500, total_tokens=900)
    assert (held.job.lost, held.job.failures) == (1, 1)
    held = await jobs.renew(held, lease_s=30, done_tokens=500, total_tokens=900, kept_tokens=256)
    assert (held.job.lost, held.job.failures) == (0, 0)
    clock.advance(31)
    held = await leased(jobs)
    held = await jobs.renew(held, lease_s=30, done_tokens=256, total_tokens=900, kept_tokens=256)
    assert held.job.lost == 1, "storing the same once more is no progress"
    assert held.job.id == job.id


async def test_what_a_dead_worker_holds_can_be_freed_at_once(jobs: JobQueue) -> None:
    await enqueue(jobs, "t/1")
    await enqueue(jobs, "t/2")
    await leased(jobs, A)
    await leased(jobs, B)
    assert sorted(await jobs.holders()) == [A, B]
    assert await jobs.reclaim(A) == 1
    assert await jobs.holders() == [B]
    again = await leased(jobs, B)
    assert (again.job.target, again.job.lost) == ("t/1", 1)


async def test_freeing_counts_as_a_loss_so_that_it_does_not_go_on_for_ever(jobs: JobQueue) -> None:
    job = await enqueue(jobs)
    for _ in range(100):
        if await lease(jobs) is None:
            break
        await jobs.reclaim(A)
    assert (await state_of(jobs, job.id)).state is JobState.DEAD


async def test_pruning_drops_only_old_finished_jobs(jobs: JobQueue, clock: HostClock) -> None:
    done, dead, waiting = [await enqueue(jobs, f"t/{n}", 9 - n) for n in range(3)]
    await jobs.complete(await leased(jobs))
    await jobs.fail(await leased(jobs), error="x", retry_in_s=None)
    assert await jobs.prune(older_than_s=10) == 0
    clock.advance(11)
    assert await jobs.prune(older_than_s=10) == 1
    assert await jobs.get(done.id) is None
    assert {job.id for job in await jobs.jobs()} == {dead.id, waiting.id}


async def test_many_handles_at_once_lease_each_job_once(store: Store) -> None:
    handles = [store.open().jobs for _ in range(4)]
    for n in range(40):
        await enqueue(handles[0], f"t/{n}")

    async def drain(jobs: JobQueue, worker: WorkerId) -> list[JobId]:
        mine: list[JobId] = []
        while (held := await lease(jobs, worker)) is not None:
            mine.append(held.job.id)
        return mine

    taken = await asyncio.gather(*(drain(jobs, WorkerId(f"w{n}")) for n, jobs in enumerate(handles)))
    ids = [job_id for mine in taken for job_id in mine]
    assert (len(ids), len(set(ids))) == (40, 40)


async def test_outcomes_are_counted_for_good_and_notes_stay_with_their_job(jobs: JobQueue, clock: HostClock) -> None:
    async def verified(outcome: str) -> None:
        job = await jobs.enqueue(kind=JobKind.VERIFY, target="t", tenant="t", label="repo", priority=-1)
        lease = await jobs.lease(A, kinds=[JobKind.FILL, JobKind.VERIFY], lease_s=30)
        assert lease is not None
        await jobs.complete(lease, outcome=outcome, note="what came of it")
        done = await jobs.get(job.id)
        assert done is not None
        assert done.note == "what came of it"

    for outcome in ("equal", "equal", "drift"):
        await verified(outcome)
    await jobs.count(JobKind.VERIFY, "drift")
    assert await jobs.outcomes(JobKind.VERIFY) == {"drift": 2, "equal": 2}
    assert await jobs.outcomes(JobKind.FILL) == {}
    clock.advance(100)
    assert await jobs.prune(older_than_s=50) == 3
    assert await jobs.outcomes(JobKind.VERIFY) == {"drift": 2, "equal": 2}


async def test_an_outcome_of_a_lost_lease_is_not_counted(jobs: JobQueue, clock: HostClock) -> None:
    await jobs.enqueue(kind=JobKind.VERIFY, target="t", tenant="t", label="repo", priority=-1)
    lease = await jobs.lease(A, kinds=[JobKind.VERIFY], lease_s=30)
    assert lease is not None
    clock.advance(31)
    assert await jobs.lease(B, kinds=[JobKind.VERIFY], lease_s=30) is not None
    with pytest.raises(LeaseLost):
        await jobs.complete(lease, outcome="equal")
    assert await jobs.outcomes(JobKind.VERIFY) == {}


async def test_a_worker_is_given_what_it_can_do_and_what_needs_nothing(jobs: JobQueue) -> None:
    for priority, needs in enumerate(["", "sig-a", "sig-b", "sig-c"]):
        await enqueue(jobs, needs, priority, needs=needs)

    async def taken(*needs: str) -> list[str]:
        held = []
        while (one := await jobs.lease(A, kinds=[JobKind.FILL], lease_s=30, needs=needs)) is not None:
            held.append(one.job.needs)
        return held

    assert await taken("sig-b") == ["sig-b", ""]
    assert await taken() == []
    assert await taken("sig-x", "sig-a") == ["sig-a"]
    assert (await leased(jobs)).job.needs == "sig-c"


@pytest.mark.parametrize("most", [999, 1000, 1023, 1024, 1500])
async def test_longer_jobs_are_left_alone(jobs: JobQueue, most: int) -> None:
    sizes = [1, 999, 1000, 1001, 1024, 1025, 1500, 1501, 2048, 100_000]
    for priority, tokens in enumerate(sizes):
        await enqueue(jobs, str(tokens), priority, total_tokens=tokens)
    held = []
    while (one := await jobs.lease(A, kinds=[JobKind.FILL], lease_s=30, max_tokens=most)) is not None:
        held.append(one.job.total_tokens)
    assert held == [tokens for tokens in reversed(sizes) if tokens <= most]


async def test_what_nobody_asked_for_is_left_alone_where_only_that_is_wanted(jobs: JobQueue) -> None:
    await enqueue(jobs, "planned", 5)
    await enqueue(jobs, "asked", ASKED, tenant="u")
    await enqueue(jobs, "planned too", 7, tenant="u")

    async def asked_for() -> Lease | None:
        return await jobs.lease(A, kinds=[JobKind.FILL], lease_s=30, min_priority=ASKED)

    held = await asked_for()
    assert held is not None
    assert held.job.target == "asked"
    assert await asked_for() is None
    assert await jobs.lease(A, kinds=[JobKind.VERIFY], lease_s=30) is None
    assert await lease(jobs) is not None


async def test_one_job_of_another_tenant_waits_for_one_job_at_most(jobs: JobQueue) -> None:
    for n in range(100):
        await enqueue(jobs, f"many/{n}", 9, tenant="many", total_tokens=1000)
    for _ in range(10):
        await leased(jobs)
    await enqueue(jobs, "one/1", 1, tenant="one", total_tokens=200_000)
    assert "one" in {(await leased(jobs)).job.tenant for _ in range(2)}


async def test_a_new_tenant_does_not_make_up_for_the_time_it_asked_for_nothing(jobs: JobQueue) -> None:
    for n in range(60):
        await enqueue(jobs, f"early/{n}", tenant="early", total_tokens=1000)
    for _ in range(30):
        await leased(jobs)
    for n in range(30):
        await enqueue(jobs, f"late/{n}", tenant="late", total_tokens=1000)
    turns = [(await leased(jobs)).job.tenant for _ in range(20)]
    assert abs(turns.count("early") - turns.count("late")) <= 1


async def test_tenants_share_by_weight(store: Store) -> None:
    jobs = store.open(QueueRules(weights={"three": 3.0})).jobs
    for tenant in ("three", "one"):
        for n in range(100):
            await enqueue(jobs, f"{tenant}/{n}", tenant=tenant, total_tokens=1000 if tenant == "one" else 500)
    tokens = dict.fromkeys(("three", "one"), 0)
    for _ in range(70):
        job = (await leased(jobs)).job
        tokens[job.tenant] += job.total_tokens
    assert tokens["three"] / tokens["one"] == pytest.approx(3, rel=0.1)


async def test_a_tenant_whose_engine_was_away_does_not_keep_others_waiting_for_all_that_it_missed(
    jobs: JobQueue,
) -> None:
    for n in range(20):
        await enqueue(jobs, f"stuck/{n}", tenant="stuck", needs="away", total_tokens=1000)
    for n in range(50):
        await enqueue(jobs, f"busy/{n}", tenant="busy", needs="here", total_tokens=1000)
        held = await jobs.lease(A, kinds=[JobKind.FILL], lease_s=30, needs=["here"])
        assert held is not None
        assert held.job.tenant == "busy"
    for n in range(5):
        await enqueue(jobs, f"new/{n}", tenant="new", needs="away", total_tokens=1000)
    turns = []
    for _ in range(6):
        held = await jobs.lease(B, kinds=[JobKind.FILL], lease_s=30, needs=["away"])
        assert held is not None
        turns.append(held.job.tenant)
    assert turns.count("new") >= 2


async def test_depth_counts_what_is_due_waits_or_is_under_way(jobs: JobQueue, clock: HostClock) -> None:
    assert await jobs.depth() == QueueDepth(due=0, later=0, leased=0, tokens=0)
    for n in range(5):
        await enqueue(jobs, f"t/{n}", 9 - n, total_tokens=1000)
    await jobs.enqueue(kind=JobKind.VERIFY, target="v", tenant="t", label="l", priority=1, total_tokens=70)
    held = await leased(jobs)
    await jobs.renew(held, lease_s=30, done_tokens=400, total_tokens=1200)
    await jobs.fail(await leased(jobs), error="x", retry_in_s=100)
    await jobs.fail(await leased(jobs), error="x", retry_in_s=None)
    await jobs.complete(await leased(jobs))
    assert await jobs.depth() == QueueDepth(due=2, later=1, leased=1, tokens=800 + 1000 + 1000 + 70)
    assert await jobs.depth(kinds=[JobKind.FILL]) == QueueDepth(due=1, later=1, leased=1, tokens=2800)
    assert await jobs.depth(kinds=[JobKind.VERIFY]) == QueueDepth(due=1, later=0, leased=0, tokens=70)
    clock.advance(100)
    assert await jobs.depth() == QueueDepth(due=4, later=0, leased=0, tokens=2870), "a lost lease is due, too"
    await jobs.renew(held, lease_s=30, done_tokens=1200, total_tokens=1200)
    assert await jobs.depth() == QueueDepth(due=3, later=0, leased=1, tokens=2070)


async def test_what_does_not_go_well_is_counted(jobs: JobQueue) -> None:
    assert await jobs.trouble() == Trouble(failing=0, dead=0)
    for n in range(3):
        await enqueue(jobs, f"t/{n}", 9 - n)
    await jobs.fail(await leased(jobs), error="x", retry_in_s=100)
    await jobs.fail(await leased(jobs), error="x", retry_in_s=0)
    assert await jobs.trouble() == Trouble(failing=2, dead=0)
    again = await leased(jobs)
    assert await jobs.trouble() == Trouble(failing=2, dead=0)
    await jobs.fail(again, error="x", retry_in_s=None)
    assert await jobs.trouble() == Trouble(failing=1, dead=1)
    await jobs.retry(again.job.id)
    assert await jobs.trouble() == Trouble(failing=1, dead=0)
    await jobs.fail(await leased(jobs), error="x", retry_in_s=None)
    assert await jobs.cancel_target(kind=JobKind.FILL, target_prefix="t/") == 2
    assert await jobs.trouble() == Trouble(failing=0, dead=0)


async def test_a_full_queue_refuses_new_jobs_alone(store: Store) -> None:
    jobs = store.open(QueueRules(max_unfinished=2)).jobs
    first = await enqueue(jobs, "t/1", 9)
    await enqueue(jobs, "t/2")
    with pytest.raises(QueueFull):
        await enqueue(jobs, "t/3")
    assert (await enqueue(jobs, "t/1", 5)).id == first.id
    held = await leased(jobs)
    with pytest.raises(QueueFull):
        await enqueue(jobs, "t/3")
    await jobs.complete(held)
    await enqueue(jobs, "t/3")


async def test_a_late_renewal_comes_too_late_for_a_job_that_was_reclaimed(jobs: JobQueue, clock: HostClock) -> None:
    await enqueue(jobs)
    held = await leased(jobs)
    clock.advance(31)
    assert (await jobs.depth()).due == 1
    assert await jobs.reclaim(A) == 1
    with pytest.raises(LeaseLost):
        await jobs.renew(held, lease_s=30, done_tokens=0, total_tokens=0)
    assert await jobs.holders() == []
