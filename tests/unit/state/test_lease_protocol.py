"""The lease protocol, driven at random against a model of what each worker may believe."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from fakes.stores import sqlite_store
from nightfill.errors import LeaseLost
from nightfill.state.jobs import JobId, JobKind, JobState, Lease, WorkerId

LEASE_S = 10.0
WORKERS = st.sampled_from(["a", "b", "c"]).map(WorkerId)


class LeaseProtocol(RuleBasedStateMachine):
    """Two handles of one store; `holder` and `until` say who rightly holds which job until when."""

    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory()
        self._store = sqlite_store(Path(self._folder.name))
        self._queues = [self._store.open().jobs for _ in range(2)]
        self._clock = self._store.clock
        self._fence: dict[JobId, int] = {}
        self._holder: dict[JobId, tuple[int, float]] = {}
        self._unfinished: set[JobId] = set()

    def _run(self, awaitable: Any) -> Any:
        return self._loop.run_until_complete(awaitable)

    def _holds(self, lease: Lease) -> bool:
        return self._holder.get(lease.job.id, (0, 0.0))[0] == lease.fence

    @rule(number=st.integers(0, 4), priority=st.floats(0, 1), handle=st.integers(0, 1))
    def enqueue(self, number: int, priority: float, handle: int) -> None:
        made = self._queues[handle].enqueue(
            kind=JobKind.FILL, target=f"t/{number}", tenant="t", label="l", priority=priority
        )
        job = self._run(made)
        assert job.state is not JobState.DONE
        if job.state is not JobState.DEAD:
            self._unfinished.add(job.id)

    @rule(target=leases, worker=WORKERS, handle=st.integers(0, 1))
    def lease(self, worker: WorkerId, handle: int) -> Any:
        held = self._run(self._queues[handle].lease(worker, kinds=[JobKind.FILL], lease_s=LEASE_S))
        if held is None:
            # Nothing is due: all unfinished jobs are rightly held (or wait for a retry, which is at once here).
            assert all(self._held_now(job_id) for job_id in self._unfinished)
            return multiple()
        assert not self._held_now(held.job.id), "two workers hold one job"
        assert held.job.id in self._unfinished
        assert held.fence > self._fence.get(held.job.id, 0)
        self._fence[held.job.id] = held.fence
        self._holder[held.job.id] = (held.fence, self._clock.steady_s + LEASE_S)
        return held

    def _held_now(self, job_id: JobId) -> bool:
        return job_id in self._holder and self._holder[job_id][1] > self._clock.steady_s

    @rule(seconds=st.sampled_from([0.5, 5.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self._clock.advance(seconds)

    @rule(by_s=st.sampled_from([-7200.0, 7200.0]))
    def wall_clock_jumps(self, by_s: float) -> None:
        self._clock.set_wall(by_s)

    def _attempt(self, lease: Lease, awaitable: Any) -> bool:
        try:
            self._run(awaitable)
        except LeaseLost:
            assert not self._holds(lease), "a rightful holder was turned away"
            return False
        assert self._holds(lease), "an old holder could write"
        return True

    @rule(lease=leases, handle=st.integers(0, 1), kept=st.integers(0, 3))
    def renew(self, lease: Lease, handle: int, kept: int) -> None:
        renewal = self._queues[handle].renew(lease, lease_s=LEASE_S, done_tokens=kept, total_tokens=3, kept_tokens=kept)
        if self._attempt(lease, renewal):
            self._holder[lease.job.id] = (lease.fence, self._clock.steady_s + LEASE_S)

    @rule(lease=consumes(leases), handle=st.integers(0, 1))
    def complete(self, lease: Lease, handle: int) -> None:
        if self._attempt(lease, self._queues[handle].complete(lease)):
            del self._holder[lease.job.id]
            self._unfinished.discard(lease.job.id)

    @rule(lease=leases, handle=st.integers(0, 1))
    def release(self, lease: Lease, handle: int) -> None:
        if self._attempt(lease, self._queues[handle].release(lease)):
            del self._holder[lease.job.id]

    @rule(lease=leases, handle=st.integers(0, 1))
    def fail(self, lease: Lease, handle: int) -> None:
        if self._attempt(lease, self._queues[handle].fail(lease, error="x", retry_in_s=0.0)):
            del self._holder[lease.job.id]

    @rule(lease=leases, handle=st.integers(0, 1))
    def cancel(self, lease: Lease, handle: int) -> None:
        if self._run(self._queues[handle].cancel(lease.job.id)):
            self._holder.pop(lease.job.id, None)
            self._unfinished.discard(lease.job.id)

    @rule(worker=WORKERS, handle=st.integers(0, 1))
    def reclaim(self, worker: WorkerId, handle: int) -> None:
        held = {job.id for job in self._jobs() if job.state is JobState.LEASED and job.worker == worker}
        assert self._run(self._queues[handle].reclaim(worker)) == len(held)
        for job_id in held:
            self._holder.pop(job_id, None)

    def _jobs(self) -> Any:
        return self._run(self._queues[0].jobs())

    @invariant()
    def no_unfinished_job_is_ever_lost(self) -> None:
        there = {job.id: job.state for job in self._jobs()}
        dead = {job_id for job_id, state in there.items() if state is JobState.DEAD}
        self._unfinished -= dead
        for job_id in dead:
            self._holder.pop(job_id, None)
        assert {i for i, s in there.items() if s in (JobState.QUEUED, JobState.LEASED)} == self._unfinished

    def teardown(self) -> None:
        self._run(self._store.aclose())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        self._folder.cleanup()


LeaseProtocol.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
TestLeaseProtocol = LeaseProtocol.TestCase
