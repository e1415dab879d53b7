"""The job queue in SQLite.

Leases are told by a steady clock that all processes of the host share and that no wall-clock jump moves
(`CLOCK_BOOTTIME`), together with the id of the boot: after a reboot no holder is left, and every old lease is void.
Only retries are set by the wall clock. A job written at a time that is still to come by more than `SKEW_S` shows that
the clock was set back; it is due at once, instead of hours late.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from nightfill.errors import LeaseLost, QueueFull, StateUnavailable
from nightfill.state.jobs import Job, JobId, JobKind, JobState, Lease, WorkerId

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from nightfill.state.sqlite.database import Database

MAX_UNFINISHED: Final = 10_000
MAX_LOST: Final = 20
"""A job whose workers fall silent so often without getting any further is dead: it may be what silences them."""
SKEW_S: Final = 60.0

_EXPIRED: Final = "(state = 'leased' AND (lease_boot IS NOT :boot OR lease_until_s <= :steady_s))"
_DUE: Final = "((state = 'queued' AND (not_before_s <= :now_s OR updated_at_s > :now_s + :skew_s)) OR " + _EXPIRED + ")"
_HELD: Final = "id = :id AND state = 'leased' AND attempts = :fence AND worker = :worker"
_FREE: Final = "worker = NULL, lease_boot = NULL, lease_until_s = NULL"


class SqliteJobs:
    """See `JobQueue`. `clock` is the wall clock, `steady` the host's shared steady clock, `boot` its boot's id."""

    def __init__(
        self, database: Database, *, clock: Callable[[], float], steady: Callable[[], float], boot: str
    ) -> None:
        self._db = database
        self._clock = clock
        self._steady = steady
        self._boot = boot

    async def enqueue(
        self, *, kind: JobKind, target: str, tenant: str, label: str, priority: float, total_tokens: int = 0
    ) -> Job:
        """See `JobQueue`. Raises QueueFull at `MAX_UNFINISHED` unfinished jobs."""

        def act(connection: sqlite3.Connection) -> Job:
            there = connection.execute(
                "SELECT * FROM jobs WHERE kind = ? AND target = ? AND state IN ('queued', 'leased', 'dead')",
                (kind, target),
            ).fetchall()
            if there:
                job = self._job(there[0])
                if job.state is JobState.DEAD or job.priority >= priority:
                    return job
                raised = connection.execute(
                    "UPDATE jobs SET priority = ? WHERE id = ? RETURNING *", (priority, job.id)
                ).fetchall()
                return self._job(raised[0])
            unfinished = connection.execute("SELECT count(*) FROM jobs WHERE state IN ('queued', 'leased')").fetchone()
            if unfinished[0] >= MAX_UNFINISHED:
                raise QueueFull(f"{MAX_UNFINISHED} jobs are waiting already", retry_after_s=60)
            made = connection.execute(
                """INSERT INTO jobs
                    (kind, target, tenant, label, priority, state, total_tokens, created_at_s, updated_at_s)
                VALUES (?1, ?2, ?3, ?4, ?5, 'queued', ?6, ?7, ?7) RETURNING *""",
                (kind, target, tenant, label, priority, total_tokens, self._clock()),
            ).fetchall()
            return self._job(made[0])

        return await self._db.write(act)

    async def lease(self, worker: WorkerId, *, kinds: Sequence[JobKind], lease_s: float) -> Lease | None:
        """See `JobQueue`. A job whose lease expired for the `MAX_LOST`th time becomes dead instead."""
        if not self._anything_due(kinds):
            return None
        future = self._db.submit(lambda connection: self._lease(connection, worker, kinds, lease_s))
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            # The writer thread cannot be stopped; what it claims for a caller who has left goes back at once (where
            # the state is closed by now, when the lease expires).
            with contextlib.suppress(StateUnavailable):
                self._db.submit(lambda connection: self._give_back(connection, future))
            raise

    async def renew(
        self, lease: Lease, *, lease_s: float, done_tokens: int, total_tokens: int, kept_tokens: int = 0
    ) -> Lease:
        """See `JobQueue`."""

        def act(connection: sqlite3.Connection) -> Lease:
            rows = connection.execute(
                f"""UPDATE jobs SET lease_boot = :boot, lease_until_s = :until_s, done_tokens = :done,
                    total_tokens = :total, updated_at_s = :now_s,
                    lost = iif(:kept > kept_tokens, 0, lost), failures = iif(:kept > kept_tokens, 0, failures),
                    kept_tokens = max(kept_tokens, :kept)
                WHERE {_HELD} RETURNING *""",  # noqa: S608 - a constant
                self._values(
                    lease, until_s=self._steady() + lease_s, done=done_tokens, total=total_tokens, kept=kept_tokens
                ),
            ).fetchall()
            if not rows:
                raise LeaseLost(f"job {lease.job.id} ({lease.job.label}): the lease of {lease.worker} is over")
            return self._held(rows[0])

        return await self._db.write(act)

    async def complete(self, lease: Lease, *, outcome: str = "", note: str = "") -> None:
        """See `JobQueue`."""
        changes = "state = 'done', error = '', note = :note, done_tokens = max(done_tokens, total_tokens)"
        await self._finish(lease, changes, outcome=outcome, note=note[:2000])

    async def count(self, kind: JobKind, outcome: str) -> None:
        """See `JobQueue`."""
        await self._db.write(lambda connection: _count(connection, kind, outcome))

    async def outcomes(self, kind: JobKind) -> dict[str, int]:
        """See `JobQueue`."""
        rows = self._db.read("SELECT outcome, count FROM job_outcomes WHERE kind = ? ORDER BY outcome", kind)
        return {row["outcome"]: row["count"] for row in rows}

    async def release(self, lease: Lease) -> None:
        """See `JobQueue`."""
        await self._finish(lease, "state = 'queued', not_before_s = 0")

    async def fail(self, lease: Lease, *, error: str, retry_at_s: float | None) -> None:
        """See `JobQueue`."""
        await self._finish(
            lease,
            "state = :state, failures = failures + 1, error = :error, not_before_s = :retry_at_s",
            state=JobState.DEAD if retry_at_s is None else JobState.QUEUED,
            error=error[:2000],
            retry_at_s=retry_at_s or 0.0,
        )

    async def cancel(self, job_id: JobId) -> bool:
        """See `JobQueue`."""

        def act(connection: sqlite3.Connection) -> bool:
            return bool(
                connection.execute(
                    f"""UPDATE jobs SET state = 'cancelled', updated_at_s = ?, {_FREE}
                    WHERE id = ? AND state IN ('queued', 'leased')""",  # noqa: S608 - a constant
                    (self._clock(), job_id),
                ).rowcount
            )

        return await self._db.write(act)

    async def cancel_target(self, *, kind: JobKind, target_prefix: str) -> int:
        """See `JobQueue`."""

        def act(connection: sqlite3.Connection) -> int:
            where = "kind = :kind AND substr(target, 1, length(:prefix)) = :prefix"
            values = {"kind": kind, "prefix": target_prefix, "now_s": self._clock()}
            connection.execute(f"DELETE FROM jobs WHERE {where} AND state = 'dead'", values)  # noqa: S608 - constant
            return connection.execute(
                f"""UPDATE jobs SET state = 'cancelled', updated_at_s = :now_s, {_FREE}
                WHERE {where} AND state IN ('queued', 'leased')""",  # noqa: S608 - a constant
                values,
            ).rowcount

        return await self._db.write(act)

    async def retry(self, job_id: JobId) -> bool:
        """See `JobQueue`."""

        def act(connection: sqlite3.Connection) -> bool:
            return bool(
                connection.execute(
                    """UPDATE jobs SET state = 'queued', failures = 0, lost = 0, not_before_s = 0, error = '',
                        updated_at_s = ? WHERE id = ? AND state = 'dead'""",
                    (self._clock(), job_id),
                ).rowcount
            )

        return await self._db.write(act)

    async def holders(self) -> list[WorkerId]:
        """See `JobQueue`."""
        rows = self._db.read("SELECT DISTINCT worker FROM jobs WHERE state = 'leased' AND worker IS NOT NULL")
        return [WorkerId(row["worker"]) for row in rows]

    async def reclaim(self, worker: WorkerId) -> int:
        """See `JobQueue`."""

        def act(connection: sqlite3.Connection) -> int:
            return connection.execute(
                f"""UPDATE jobs SET lost = lost + 1, state = iif(lost + 1 >= :most, 'dead', 'queued'),
                    error = iif(lost + 1 >= :most, :error, error), not_before_s = 0, updated_at_s = :now_s, {_FREE}
                WHERE state = 'leased' AND worker = :worker""",  # noqa: S608 - a constant
                {"worker": worker, "most": MAX_LOST, "error": _silenced(), "now_s": self._clock()},
            ).rowcount

        return await self._db.write(act)

    async def get(self, job_id: JobId) -> Job | None:
        """See `JobQueue`."""
        rows = self._db.read("SELECT * FROM jobs WHERE id = ?", job_id)
        return self._job(rows[0]) if rows else None

    async def jobs(self, *, states: Sequence[JobState] | None = None, limit: int = 1000) -> list[Job]:
        """See `JobQueue`."""
        wanted = list(JobState) if states is None else list(states)
        marks = ", ".join("?" * len(wanted))
        sql = f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY priority DESC, id LIMIT ?"  # noqa: S608
        return [self._job(row) for row in self._db.read(sql, *wanted, limit)]

    async def prune(self, *, older_than_s: float) -> int:
        """See `JobQueue`."""
        before_s = self._clock() - older_than_s
        sql = "DELETE FROM jobs WHERE state IN ('done', 'cancelled') AND updated_at_s < ?"
        return await self._db.write(lambda connection: connection.execute(sql, (before_s,)).rowcount)

    def _anything_due(self, kinds: Sequence[JobKind]) -> bool:
        """Asked of the reader, so that idle workers take no write lock at every look."""
        marks = ", ".join(f"'{JobKind(kind)}'" for kind in kinds)
        sql = f"SELECT 1 FROM jobs WHERE kind IN ({marks}) AND {_DUE} LIMIT 1"  # noqa: S608 - checked against the enum
        return bool(self._db.read(sql, **self._times()))

    def _lease(
        self, connection: sqlite3.Connection, worker: WorkerId, kinds: Sequence[JobKind], lease_s: float
    ) -> Lease | None:
        connection.execute(
            f"""UPDATE jobs SET state = 'dead', lost = lost + 1, error = :error, updated_at_s = :now_s, {_FREE}
            WHERE {_EXPIRED} AND lost + 1 >= :most""",  # noqa: S608 - a constant
            {**self._times(), "most": MAX_LOST, "error": _silenced()},
        )
        marks = ", ".join(f"'{JobKind(kind)}'" for kind in kinds)
        # One statement claims and leases, or two workers could take the same job.
        rows = connection.execute(
            f"""UPDATE jobs SET lost = lost + (state = 'leased'), state = 'leased', worker = :worker,
                attempts = attempts + 1, lease_boot = :boot, lease_until_s = :steady_s + :lease_s, updated_at_s = :now_s
            WHERE id = (SELECT id FROM jobs WHERE kind IN ({marks}) AND {_DUE} ORDER BY priority DESC, id LIMIT 1)
            RETURNING *""",  # noqa: S608 - checked against the enum
            {**self._times(), "worker": worker, "lease_s": lease_s},
        ).fetchall()
        return self._held(rows[0]) if rows else None

    def _give_back(self, connection: sqlite3.Connection, claim: Future[Lease | None]) -> None:
        if claim.cancelled() or claim.exception() is not None:
            return
        lease = claim.result()
        if lease is not None:
            connection.execute(
                f"UPDATE jobs SET state = 'queued', {_FREE} WHERE {_HELD}",  # noqa: S608 - a constant
                self._values(lease),
            )

    async def _finish(self, lease: Lease, changes: str, *, outcome: str = "", **values: object) -> None:
        def act(connection: sqlite3.Connection) -> None:
            changed = connection.execute(
                f"UPDATE jobs SET {changes}, updated_at_s = :now_s, {_FREE} WHERE {_HELD}",  # noqa: S608 - constants
                self._values(lease, **values),
            ).rowcount
            if not changed:
                raise LeaseLost(f"job {lease.job.id} ({lease.job.label}): the lease of {lease.worker} is over")
            if outcome:
                _count(connection, lease.job.kind, outcome)

        await self._db.write(act)

    def _times(self) -> dict[str, object]:
        return {"now_s": self._clock(), "steady_s": self._steady(), "boot": self._boot, "skew_s": SKEW_S}

    def _values(self, lease: Lease, **more: object) -> dict[str, object]:
        return {**self._times(), "id": lease.job.id, "fence": lease.fence, "worker": lease.worker, **more}

    def _held(self, row: Any) -> Lease:
        job = self._job(row)
        assert job.worker is not None
        assert job.lease_expires_at_s is not None
        return Lease(job=job, worker=job.worker, fence=job.attempts, expires_at_s=job.lease_expires_at_s)

    def _job(self, row: Any) -> Job:
        expires_at_s = None
        if row["lease_until_s"] is not None:
            left_s = row["lease_until_s"] - self._steady() if row["lease_boot"] == self._boot else 0.0
            expires_at_s = self._clock() + left_s
        return Job(
            id=JobId(row["id"]),
            kind=JobKind(row["kind"]),
            target=row["target"],
            tenant=row["tenant"],
            label=row["label"],
            priority=row["priority"],
            state=JobState(row["state"]),
            attempts=row["attempts"],
            failures=row["failures"],
            lost=row["lost"],
            not_before_s=row["not_before_s"],
            done_tokens=row["done_tokens"],
            total_tokens=row["total_tokens"],
            worker=None if row["worker"] is None else WorkerId(row["worker"]),
            lease_expires_at_s=expires_at_s,
            error=row["error"],
            created_at_s=row["created_at_s"],
            updated_at_s=row["updated_at_s"],
            note=row["note"],
        )


def _count(connection: sqlite3.Connection, kind: JobKind, outcome: str) -> None:
    connection.execute(
        "INSERT INTO job_outcomes VALUES (?, ?, 1) ON CONFLICT (kind, outcome) DO UPDATE SET count = count + 1",
        (kind, outcome),
    )


def _silenced() -> str:
    return f"{MAX_LOST} workers in a row fell silent while working on it"
