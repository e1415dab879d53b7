"""The queue, its budgets and its ledger, driven at random against a plain model of both, on every store."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from fakes.balance import balanced
from fakes.stores import STORES
from nightfill.errors import BudgetSpent, LeaseLost
from nightfill.state.budgets import DAY_S, BudgetRules, Period, Scope, scopes_of
from nightfill.state.jobs import Job, JobId, JobKind, JobState, Lease, QueueRules, Work, WorkerId

LEASE_S = 10.0
TOKENS = 100
"""Of each job, all of them set aside."""
RULES = QueueRules(weights={"b": 2.0}, budgets=BudgetRules(user_day=350, tenant_day=600, all_month=5000))
WORKERS = st.sampled_from(["w1", "w2", "w3"]).map(WorkerId)
OWNERS = st.sampled_from([("a", ""), ("a", "ann"), ("b", "bob")])
HANDLES = st.integers(0, 1)
MACHINE = "spot"


@dataclass
class Model:
    """What is known of one job. `charged` is what its lease has told, `until_s` when that ends."""

    id: JobId
    owner: tuple[str, str]
    state: JobState = JobState.QUEUED
    fence: int = 0
    worker: WorkerId | None = None
    until_s: float = 0.0
    due_s: float = 0.0
    reserved: int = TOKENS
    charged: int = 0
    losses: int = 0

    @property
    def unfinished(self) -> bool:
        return self.state in (JobState.QUEUED, JobState.LEASED)

    def due(self, now_s: float) -> bool:
        return (self.state is JobState.QUEUED and self.due_s <= now_s) or self.lost(now_s)

    def lost(self, now_s: float) -> bool:
        return self.state is JobState.LEASED and self.until_s <= now_s

    def end(self, state: JobState) -> None:
        self.state, self.worker, self.reserved = state, None, 0

    def wait(self, until_s: float) -> None:
        self.state, self.worker, self.due_s = JobState.QUEUED, None, until_s


@dataclass
class Bill:
    """What was computed, by day and owner."""

    tokens: Counter[tuple[int, tuple[str, str]]] = field(default_factory=Counter)
    fills: Counter[tuple[int, tuple[str, str]]] = field(default_factory=Counter)

    def spent(self, scope: Scope, days: range) -> int:
        return sum(n for (day, owner), n in self.tokens.items() if day in days and scope in scopes_of(*owner))


class QueueMachine(RuleBasedStateMachine):
    """Two handles of one store, each of which may crash and be opened anew."""

    store_name: ClassVar[str]
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory()
        self._store = STORES[self.store_name](Path(self._folder.name))
        self._states = self._run(self._opened(2))
        self._clock = self._store.clock
        self._jobs: dict[JobId, Model] = {}
        self._bill = Bill()

    async def _opened(self, number: int) -> list[Any]:
        return [self._store.open(RULES) for _ in range(number)]

    def _run(self, awaitable: Any) -> Any:
        return self._loop.run_until_complete(awaitable)

    @property
    def _now_s(self) -> float:
        return self._clock.wall_s

    def _charge(self, job: Model, tokens: int) -> None:
        more = max(0, tokens - job.charged)
        job.charged += more
        job.reserved -= min(more, job.reserved)
        if more:
            self._bill.tokens[int(self._now_s // DAY_S), job.owner] += more

    def _left(self, owner: tuple[str, str]) -> int:
        """The least of what the budgets that pay for it have left."""
        left = []
        for scope in scopes_of(*owner):
            aside = sum(job.reserved for job in self._jobs.values() if scope in scopes_of(*job.owner))
            for period in Period:
                limit = RULES.budgets.limit(scope, period)
                if limit is not None:
                    left.append(max(0, limit - aside - self._bill.spent(scope, period.days(self._now_s))))
        return min(left)

    # --- what callers do ---

    @rule(number=st.integers(0, 7), owner=OWNERS, priority=st.floats(0, 1), handle=HANDLES)
    def enqueue(self, number: int, owner: tuple[str, str], priority: float, handle: int) -> None:
        left = self._left(owner)
        tenant, user = owner
        made = self._states[handle].jobs.enqueue(
            kind=JobKind.FILL,
            target=f"{tenant}/{user}/{number}",
            tenant=tenant,
            user=user,
            label="repo",
            priority=priority,
            total_tokens=TOKENS,
            reserve_tokens=TOKENS,
        )
        try:
            job: Job = self._run(made)
        except BudgetSpent:
            assert left < TOKENS
            return
        known = self._jobs.get(job.id)
        if known is None:
            assert left >= TOKENS, "more was set aside than there is"
            self._jobs[job.id] = Model(job.id, owner)
        else:
            assert known.unfinished or known.state is JobState.DEAD

    @rule(target=leases, worker=WORKERS, handle=HANDLES)
    def lease(self, worker: WorkerId, handle: int) -> Any:
        held: Lease | None = self._run(self._states[handle].jobs.lease(worker, kinds=[JobKind.FILL], lease_s=LEASE_S))
        if held is None:
            assert not any(job.due(self._now_s) for job in self._jobs.values()), "a due job was not given"
            return multiple()
        job = self._jobs[held.job.id]
        assert job.due(self._now_s), "two workers hold one job, or one was given too early"
        assert held.fence == job.fence + 1
        job.losses += job.lost(self._now_s)
        assert held.job.lost <= job.losses
        job.state, job.fence, job.worker, job.charged = JobState.LEASED, held.fence, worker, 0
        job.until_s = self._now_s + LEASE_S
        return held

    def _attempt(self, lease: Lease, awaitable: Any) -> Model | None:
        """The job if the lease is still good, and then the call must have succeeded; else it must not."""
        job = self._jobs[lease.job.id]
        good = job.state is JobState.LEASED and job.fence == lease.fence and job.worker is not None
        try:
            self._run(awaitable)
        except LeaseLost:
            assert not good, "a rightful holder was turned away"
            return None
        assert good, "an old holder could write"
        return job

    @rule(lease=leases, handle=HANDLES, tokens=st.integers(0, 150))
    def renew(self, lease: Lease, handle: int, tokens: int) -> None:
        work = Work(tokens=tokens, seconds=tokens / 8, machine=MACHINE)
        renewal = self._states[handle].jobs.renew(
            lease, lease_s=LEASE_S, done_tokens=min(tokens, TOKENS), total_tokens=TOKENS, work=work
        )
        if (job := self._attempt(lease, renewal)) is not None:
            self._charge(job, tokens)
            job.until_s = self._now_s + LEASE_S

    @rule(lease=consumes(leases), handle=HANDLES, tokens=st.integers(0, 150))
    def complete(self, lease: Lease, handle: int, tokens: int) -> None:
        work = Work(tokens=tokens, seconds=tokens / 8, machine=MACHINE)
        if (job := self._attempt(lease, self._states[handle].jobs.complete(lease, work=work))) is not None:
            self._charge(job, tokens)
            job.end(JobState.DONE)
            self._bill.fills[int(self._now_s // DAY_S), job.owner] += 1

    @rule(lease=leases, handle=HANDLES, tokens=st.integers(0, 150))
    def release(self, lease: Lease, handle: int, tokens: int) -> None:
        work = Work(tokens=tokens, machine=MACHINE)
        if (job := self._attempt(lease, self._states[handle].jobs.release(lease, work=work))) is not None:
            self._charge(job, tokens)
            job.wait(0.0)

    @rule(lease=leases, handle=HANDLES, tokens=st.integers(0, 50), retry_in_s=st.sampled_from([None, 0.0, 3.0, 20.0]))
    def fail(self, lease: Lease, handle: int, tokens: int, retry_in_s: float | None) -> None:
        work = Work(tokens=tokens, machine=MACHINE)
        failing = self._states[handle].jobs.fail(lease, error="x", retry_in_s=retry_in_s, work=work)
        if (job := self._attempt(lease, failing)) is not None:
            self._charge(job, tokens)
            if retry_in_s is None:
                job.end(JobState.DEAD)
            else:
                job.wait(self._now_s + retry_in_s)

    @precondition(lambda self: self._jobs)
    @rule(data=st.data(), handle=HANDLES)
    def cancel(self, data: st.DataObject, handle: int) -> None:
        job = self._jobs[data.draw(st.sampled_from(sorted(self._jobs)))]
        assert self._run(self._states[handle].jobs.cancel(job.id)) == job.unfinished
        if job.unfinished:
            job.end(JobState.CANCELLED)

    @precondition(lambda self: any(job.state is JobState.DEAD for job in self._jobs.values()))
    @rule(data=st.data(), handle=HANDLES)
    def retry(self, data: st.DataObject, handle: int) -> None:
        job = self._jobs[data.draw(st.sampled_from(sorted(self._jobs)))]
        # How much it still needs is the store's to say: between nothing and all of it.
        left = self._left(job.owner)
        try:
            retried = self._run(self._states[handle].jobs.retry(job.id))
        except BudgetSpent:
            assert job.state is JobState.DEAD
            assert left < TOKENS
            return
        assert retried == (job.state is JobState.DEAD)
        if retried:
            again: Job = self._run(self._states[handle].jobs.get(job.id))
            assert 0 <= again.reserved_tokens <= min(TOKENS, left)
            job.wait(0.0)
            job.reserved, job.losses = again.reserved_tokens, 0

    @rule(worker=WORKERS, handle=HANDLES)
    def reclaim(self, worker: WorkerId, handle: int) -> None:
        held = [job for job in self._jobs.values() if job.worker == worker]
        assert self._run(self._states[handle].jobs.reclaim(worker)) == len(held)
        for job in held:
            job.wait(0.0)
            job.losses += 1

    @precondition(lambda self: len(self._jobs) > 4)
    @rule(tenant=st.sampled_from(["a", "b"]), handle=HANDLES)
    def cancel_target(self, tenant: str, handle: int) -> None:
        cancelled = [job for job in self._jobs.values() if job.owner[0] == tenant and job.unfinished]
        prefix = f"{tenant}/"
        assert self._run(self._states[handle].jobs.cancel_target(kind=JobKind.FILL, target_prefix=prefix)) == len(
            cancelled
        )
        for job in cancelled:
            job.end(JobState.CANCELLED)

    # --- what happens to them ---

    @rule(seconds=st.sampled_from([1.0, 5.0, 11.0, 40_000.0]))
    def time_passes(self, seconds: float) -> None:
        self._clock.advance(seconds)

    @rule(handle=HANDLES)
    def crash(self, handle: int) -> None:
        self._run(self._states[handle].aclose())
        (self._states[handle],) = self._run(self._opened(1))

    # --- what must always be so ---

    @invariant()
    def nothing_is_lost_and_the_books_balance(self) -> None:
        self._run(self._check())

    async def _check(self) -> None:
        state = self._states[0]
        found: dict[JobId, Job] = {job.id: job for job in await state.jobs.jobs()}
        for model in self._jobs.values():
            job = found.get(model.id)
            if job is None:
                assert not model.unfinished, "a job was lost"
                model.state = JobState.CANCELLED  # a dead one, forgotten with its target
                continue
            if job.state is JobState.DEAD and model.unfinished:
                assert model.losses + 1 >= 20, "given up for no reason"
                model.end(JobState.DEAD)
            assert (job.state, job.attempts) == (model.state, model.fence)
            assert job.reserved_tokens == model.reserved
            assert job.worker == model.worker
        assert found.keys() <= self._jobs.keys()
        await balanced(state, now_s=self._now_s)
        depth = await state.jobs.depth()
        now_s = self._now_s
        unfinished = [job for job in self._jobs.values() if job.unfinished]
        assert depth.due == sum(job.due(now_s) for job in unfinished)
        assert depth.later == sum(job.state is JobState.QUEUED and job.due_s > now_s for job in unfinished)
        assert depth.leased == sum(job.state is JobState.LEASED and not job.lost(now_s) for job in unfinished)
        day = int(now_s // DAY_S)
        lines = await state.ledger.lines(since_day=0, until_day=day)
        for (billed, owner), tokens in self._bill.tokens.items():
            of = [line for line in lines if (line.day, line.tenant, line.user) == (billed, *owner)]
            assert sum(line.background_tokens for line in of) == tokens
        assert sum(line.background_tokens for line in lines) == self._bill.tokens.total()
        assert sum(line.fills for line in lines) == self._bill.fills.total()

    def teardown(self) -> None:
        self._run(self._store.aclose())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        self._folder.cleanup()


def _case(store: str) -> type:
    machine = type(f"QueueMachine_{store}", (QueueMachine,), {"store_name": store})
    case: type = machine.TestCase  # type: ignore[attr-defined]
    case.settings = settings(  # type: ignore[attr-defined]
        max_examples=20,
        stateful_step_count=40,
        deadline=None,
        phases=[Phase.generate],  # to shrink a failure takes minutes: take this line away for that
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        derandomize=True,
    )
    return case


TestQueueOnRedis = _case("redis")
TestQueueOnSqlite = _case("sqlite")
