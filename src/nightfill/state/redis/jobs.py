"""The job queue in Redis: each transition is one call of `jobs.lua`, by the server's clock."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.errors import LeaseLost, QueueFull, StateUnavailable
from nightfill.state.budgets import Period, Scope, refuse_beyond, scopes_of
from nightfill.state.jobs import (
    ASKED,
    NO_WORK,
    Job,
    JobId,
    JobKind,
    JobState,
    Lease,
    QueueDepth,
    QueueRules,
    Trouble,
    Work,
    WorkerId,
)
from nightfill.state.redis.budgets import lines_of
from nightfill.state.redis.server import ROOT, Server, batches, pairs, scripts

if TYPE_CHECKING:
    from collections.abc import Sequence

_KINDS: Final = tuple(str(kind) for kind in JobKind)
_AT_ONCE: Final = 500
"""Records read or dropped in one step, so that others need not wait for long."""
_GIVE_BACK_S: Final = 5.0


class _Record(msgspec.Struct, array_like=True):
    """The front of a record of `jobs.lua`."""

    id: int
    kind: JobKind
    target: str
    tenant: str
    label: str
    priority: float
    state: JobState
    attempts: int
    failures: int
    lost: int
    not_before_s: float
    done_tokens: int
    total_tokens: int
    worker: str
    lease_expires_at_s: float
    error: str
    created_at_s: float
    updated_at_s: float
    note: str
    user: str
    needs: str
    reserved_tokens: int


_decoder: Final = msgspec.msgpack.Decoder(_Record)


class RedisJobs:
    """See `JobQueue`."""

    def __init__(self, server: Server, *, rules: QueueRules) -> None:
        self._server = server
        self._scripts = scripts("jobs")
        self._rules = rules
        self._weights = dict(rules.weights)
        digest = hashlib.sha256(msgspec.json.encode(sorted(self._weights.items()))).hexdigest()[:16]
        self._weights_digest = digest if self._weights else ""
        self._me, self._calls = secrets.token_hex(6), itertools.count(1)
        self._unanswered: dict[WorkerId, str] = {}
        """Calls of `lease` that may have been carried out, though nobody was told."""
        self._returns: set[asyncio.Task[None]] = set()

    async def enqueue(
        self,
        *,
        kind: JobKind,
        target: str,
        tenant: str,
        label: str,
        priority: float,
        total_tokens: int = 0,
        user: str = "",
        needs: str = "",
        reserve_tokens: int = 0,
    ) -> Job:
        """See `JobQueue`."""
        scopes = scopes_of(tenant, user)
        words = (kind, target, tenant, label, priority, total_tokens, user, needs, reserve_tokens)
        reply = await self._run("enqueue", *words, ASKED, self._rules.max_unfinished, _KINDS, self._defaults(scopes))
        if reply[0] == b"spent":
            self._refuse(scopes, reply[1], reserve_tokens)
        return job_of(reply[1])

    async def lease(
        self,
        worker: WorkerId,
        *,
        kinds: Sequence[JobKind],
        lease_s: float,
        needs: Sequence[str] | None = None,
        max_tokens: int | None = None,
        min_priority: float | None = None,
    ) -> Lease | None:
        """See `JobQueue`. When the answer to an earlier call was lost, and that call leased a job, it is this one."""
        nonce = self._unanswered.pop(worker, "") or self._nonce()
        words = (
            worker,
            list(kinds),
            lease_s,
            False if needs is None else list(needs),
            False if max_tokens is None else max_tokens,
            False if min_priority is None else min_priority,
            self._weights_digest,
            nonce,
        )
        task = asyncio.create_task(self._lease(words), name=f"lease for {worker}")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            back = asyncio.create_task(self._give_back(task), name=f"give back what {worker} leased")
            self._returns.add(back)
            back.add_done_callback(self._returns.discard)
            raise
        except StateUnavailable:
            self._unanswered[worker] = nonce
            raise

    async def renew(
        self,
        lease: Lease,
        *,
        lease_s: float,
        done_tokens: int,
        total_tokens: int,
        kept_tokens: int = 0,
        work: Work = NO_WORK,
    ) -> Lease:
        """See `JobQueue`."""
        told = (work.tokens, work.seconds, work.machine)
        reply = await self._run(
            "renew", *_held(lease), lease_s, done_tokens, total_tokens, kept_tokens, told, lease=lease
        )
        return _lease(job_of(reply[1]))

    async def complete(self, lease: Lease, *, outcome: str = "", note: str = "", work: Work = NO_WORK) -> None:
        """See `JobQueue`."""
        await self._end("complete", lease, work, outcome, note[:2000])

    async def count(self, kind: JobKind, outcome: str) -> None:
        """See `JobQueue`."""
        await self._server.run(self._scripts["count"], kind, outcome, again=False)

    async def outcomes(self, kind: JobKind) -> dict[str, int]:
        """See `JobQueue`."""
        reply = await self._server.call("HGETALL", f"{ROOT}:outcomes:{kind}")
        return dict(sorted((name.decode(), int(number)) for name, number in pairs(reply)))

    async def release(self, lease: Lease, *, work: Work = NO_WORK) -> None:
        """See `JobQueue`."""
        await self._end("release", lease, work)

    async def fail(self, lease: Lease, *, error: str, retry_in_s: float | None, work: Work = NO_WORK) -> None:
        """See `JobQueue`."""
        await self._end("fail", lease, work, error[:2000], False if retry_in_s is None else retry_in_s)

    async def cancel(self, job_id: JobId) -> bool:
        """See `JobQueue`."""
        return bool(await self._server.run(self._scripts["cancel"], job_id))

    async def cancel_target(self, *, kind: JobKind, target_prefix: str) -> int:
        """See `JobQueue`."""
        return int(await self._server.run(self._scripts["cancel_target"], kind, target_prefix))

    async def retry(self, job_id: JobId) -> bool:
        """See `JobQueue`."""
        job = await self.get(job_id)
        if job is None or job.state is not JobState.DEAD:
            return False
        scopes = scopes_of(job.tenant, job.user)
        reply = await self._run("retry", job_id, self._rules.max_unfinished, _KINDS, self._defaults(scopes))
        if reply[0] == b"spent":
            self._refuse(scopes, reply[1], int(reply[2]))
        return bool(reply[0] == b"job")

    async def depth(self, *, kinds: Sequence[JobKind] | None = None) -> QueueDepth:
        """See `JobQueue`."""
        wanted = _KINDS if kinds is None else tuple(kinds)
        due, later, leased, tokens = await self._server.run(self._scripts["depth"], wanted)
        return QueueDepth(due=due, later=later, leased=leased, tokens=tokens)

    async def trouble(self) -> Trouble:
        """See `JobQueue`."""
        failing, dead = await self._server.run(self._scripts["trouble"], _KINDS)
        return Trouble(failing=failing, dead=dead)

    async def holders(self) -> list[WorkerId]:
        """See `JobQueue`."""
        return [WorkerId(name.decode()) for name in await self._server.run(self._scripts["holders"])]

    async def reclaim(self, worker: WorkerId) -> int:
        """See `JobQueue`."""
        return int(await self._server.run(self._scripts["reclaim"], worker))

    async def get(self, job_id: JobId) -> Job | None:
        """See `JobQueue`."""
        packed = await self._server.call("HGET", f"{ROOT}:jobs", job_id)
        return None if packed is None else job_of(packed)

    async def jobs(self, *, states: Sequence[JobState] | None = None, limit: int = 1000) -> list[Job]:
        """See `JobQueue`. Which they are is read at once, what they are in steps; who changed its state is left out."""
        wanted = tuple(JobState if states is None else states)
        ids = await self._server.run(self._scripts["ids"], _KINDS, wanted, limit)
        found: list[Job] = []
        for some in batches(ids, _AT_ONCE):
            rows = await self._server.call("HMGET", f"{ROOT}:jobs", *some)
            found += [job for packed in rows if packed is not None and (job := job_of(packed)).state in wanted]
        return found

    async def prune(self, *, older_than_s: float) -> int:
        """See `JobQueue`."""
        dropped = 0
        while True:
            gone = int(await self._server.run(self._scripts["prune"], older_than_s, _AT_ONCE))
            dropped += gone
            if gone < _AT_ONCE:
                return dropped

    async def aclose(self) -> None:
        """Wait, not for long, until jobs are back that were leased for callers who had left."""
        if self._returns:
            await asyncio.wait(self._returns, timeout=_GIVE_BACK_S)
            for task in self._returns:
                task.cancel()

    async def _lease(self, words: tuple[object, ...]) -> Lease | None:
        reply = await self._server.run(self._scripts["lease"], *words)
        if reply[0] == b"weights":
            await self._server.run(self._scripts["weigh"], self._weights_digest, self._weights)
            reply = await self._server.run(self._scripts["lease"], *words)
        return None if reply[0] == b"none" else _lease(job_of(reply[1]))

    async def _give_back(self, claim: asyncio.Task[Lease | None]) -> None:
        try:
            lease = await claim
            if lease is not None:
                await self.release(lease)
        except (StateUnavailable, LeaseLost):
            pass  # then it is free when the lease expires

    async def _end(self, name: str, lease: Lease, work: Work, *words: object) -> None:
        told = (work.tokens, work.seconds, work.machine)
        await self._run(name, *_held(lease), self._nonce(), told, *words, lease=lease)

    async def _run(self, name: str, *words: object, lease: Lease | None = None) -> Any:
        reply = await self._server.run(self._scripts[name], *words)
        if reply[0] == b"lost":
            assert lease is not None
            raise LeaseLost(f"job {lease.job.id} ({lease.job.label}): the lease of {lease.worker} is over")
        if reply[0] == b"full":
            raise QueueFull(f"{self._rules.max_unfinished} jobs are waiting already", retry_after_s=60)
        return reply

    def _nonce(self) -> str:
        return f"{self._me}-{next(self._calls)}"

    def _defaults(self, scopes: Sequence[Scope]) -> list[list[int | bool]]:
        """Limits of day and month for each scope, false for none."""
        limits = [[self._rules.budgets.limit(scope, period) for period in Period] for scope in scopes]
        return [[False if limit is None else limit for limit in pair] for pair in limits]

    def _refuse(self, scopes: Sequence[Scope], packed: bytes, tokens: int) -> None:
        refuse_beyond(lines_of(scopes, msgspec.msgpack.decode(packed), self._rules.budgets), tokens)
        raise AssertionError("the server found a budget too small that is not")


def _held(lease: Lease) -> tuple[object, ...]:
    return lease.job.id, lease.worker, lease.fence


def _lease(job: Job) -> Lease:
    assert job.worker is not None
    assert job.lease_expires_at_s is not None
    return Lease(job=job, worker=job.worker, fence=job.attempts, expires_at_s=job.lease_expires_at_s)


def job_of(packed: bytes) -> Job:
    """From a record of `jobs.lua`."""
    record = _decoder.decode(packed)
    return Job(
        id=JobId(record.id),
        kind=record.kind,
        target=record.target,
        tenant=record.tenant,
        label=record.label,
        priority=record.priority,
        state=record.state,
        attempts=record.attempts,
        failures=record.failures,
        lost=record.lost,
        not_before_s=record.not_before_s,
        done_tokens=record.done_tokens,
        total_tokens=record.total_tokens,
        worker=WorkerId(record.worker) if record.worker else None,
        lease_expires_at_s=record.lease_expires_at_s if record.worker else None,
        error=record.error,
        created_at_s=record.created_at_s,
        updated_at_s=record.updated_at_s,
        note=record.note,
        user=record.user,
        needs=record.needs,
        reserved_tokens=record.reserved_tokens,
    )
