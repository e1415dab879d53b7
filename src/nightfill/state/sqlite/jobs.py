"""The job queue in SQLite.

Leases are told by a steady clock that all processes of the host share and that no wall-clock jump moves
(`CLOCK_BOOTTIME`), together with the id of the boot: after a reboot no holder is left, and every old lease is void.
Only retries are set by the wall clock. A job written at a time that is still to come by more than `SKEW_S` shows that
the clock was set back; it is due at once, instead of hours late.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nightfill.errors import LeaseLost, QueueFull, StateUnavailable
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
from nightfill.state.sqlite.budgets import check
from nightfill.state.sqlite.sums import HELD, NOT_LEASED, UNFINISHED, size_of
from nightfill.state.sqlite.turns import COLUMNS, OVERDUE, SKEW_S, claim, make_due, wanted

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from nightfill.state.sqlite.database import Database
    from nightfill.state.sqlite.turns import Wanted

MAX_LOST: Final = 20
"""A job whose workers fall silent so often without getting any further is dead: it may be what silences them."""
_SILENCED: Final = f"{MAX_LOST} workers in a row fell silent while working on it"
_PRUNED_AT_ONCE: Final = 10_000

_HELD: Final = f"id = :id AND state IN {HELD} AND attempts = :fence AND worker = :worker"
# Each state has its index.
_HELD_BY: Final = f"""SELECT {{0}} FROM jobs WHERE state = 'leased' AND {{1}}
    UNION SELECT {{0}} FROM jobs WHERE state = 'expired' AND {NOT_LEASED} AND {{1}}"""  # noqa: S608 - constants
_FREE: Final = "worker = NULL, lease_boot = NULL, lease_until_s = NULL"
_CHARGE: Final = """lease_tokens = max(lease_tokens, :tokens), lease_s = max(lease_s, :seconds),
    machine = iif(:machine = '', machine, :machine)"""
_KEEP: Final = "reserved_tokens = max(0, reserved_tokens - max(0, :tokens - lease_tokens))"
_RETURN: Final = "reserved_tokens = 0"
_STATES: Final = {
    JobState.QUEUED: ("queued", "waiting"),
    JobState.LEASED: ("leased", "expired"),
    JobState.DONE: ("done",),
    JobState.DEAD: ("dead",),
    JobState.CANCELLED: ("cancelled",),
}
"""As they are in the file: see `sums`."""
_KIND_OF: Final = {str(kind): kind for kind in JobKind}
_STATE_OF: Final = {name: state for state, names in _STATES.items() for name in names}


@dataclass(slots=True)
class _Ask:
    """Somebody's wish for a job, and what came of it."""

    asked: Wanted
    worker: WorkerId
    lease_s: float
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class _End:
    """Of a lease."""

    lease: Lease
    changes: str
    values: dict[str, object]
    outcome: str


class SqliteJobs:
    """See `JobQueue`. `clock` is the wall clock, `steady` the host's shared steady clock, `boot` its boot's id."""

    def __init__(
        self,
        database: Database,
        *,
        rules: QueueRules,
        clock: Callable[[], float],
        steady: Callable[[], float],
        boot: str,
    ) -> None:
        self._db = database
        self._rules = rules
        self._clock = clock
        self._steady = steady
        self._boot = boot
        self._found: Wanted | None = None
        """What was asked for when there was something last: so there may well be more."""

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

        def act(connection: sqlite3.Connection) -> Job:
            self._db.tally.write()
            there = connection.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE kind = ? AND target = ? AND NOT ended",  # noqa: S608 - a constant
                (kind, target),
            ).fetchall()
            if there:
                job = self.job(there[0])
                if job.state is JobState.DEAD or job.priority in (ASKED, priority):
                    return job
                changed = connection.execute(
                    f"UPDATE jobs SET priority = ? WHERE id = ? RETURNING {COLUMNS}",  # noqa: S608 - a constant
                    (priority, job.id),
                ).fetchall()
                return self.job(changed[0])
            self._make_room(connection)
            now_s = self._clock()
            check(connection, self._rules.budgets, tenant=tenant, user=user, tokens=reserve_tokens, now_s=now_s)
            made = connection.execute(
                f"""INSERT INTO jobs (kind, target, tenant, label, priority, state, total_tokens, created_at_s,
                    updated_at_s, user, needs, asked_tokens, reserved_tokens, size)
                VALUES (?1, ?2, ?3, ?4, ?5, 'queued', ?6, ?7, ?7, ?8, ?9, ?10, ?10, ?11) RETURNING {COLUMNS}""",  # noqa: S608 - a constant
                (
                    *(kind, target, tenant, label, priority, total_tokens),
                    *(now_s, user, needs, reserve_tokens, size_of(total_tokens)),
                ),
            ).fetchall()
            return self.job(made[0])

        return await self._db.write(act)

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
        """See `JobQueue`. A job whose lease expired for the `MAX_LOST`th time becomes dead instead."""
        asked = wanted(tuple(kinds), None if needs is None else tuple(needs), max_tokens, min_priority)
        if asked is not self._found:
            # Asked of the reader, so that idle workers take no write lock at every look.
            ((overdue, some),) = self._db.read(asked.any, **self._times(), **asked.values)
            if not overdue and not some:
                return None
        ask = _Ask(asked, worker, lease_s)
        try:
            lease = await self._db.together(self._claim, ask)
        except asyncio.CancelledError:
            # The writer cannot be stopped; what it claims for a caller who has left goes back at once (where the
            # state is closed by now, when the lease expires).
            with contextlib.suppress(StateUnavailable):
                self._db.submit(lambda connection: self._give_back(connection, ask.lease))
            raise
        self._found = asked if lease is not None else None
        return lease

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

        def act(connection: sqlite3.Connection) -> Lease:
            rows = connection.execute(
                f"""UPDATE jobs SET state = 'leased', lease_boot = :boot, lease_until_s = :until_s, done_tokens = :done,
                    total_tokens = :total, size = :size, updated_at_s = :now_s,
                    lost = iif(:kept > kept_tokens, 0, lost), failures = iif(:kept > kept_tokens, 0, failures),
                    kept_tokens = max(kept_tokens, :kept), {_KEEP}, {_CHARGE}
                WHERE {_HELD} RETURNING {COLUMNS}""",  # noqa: S608 - constants
                self._values(
                    lease,
                    work,
                    boot=self._boot,
                    until_s=self._steady() + lease_s,
                    done=done_tokens,
                    total=total_tokens,
                    size=size_of(total_tokens),
                    kept=kept_tokens,
                ),
            ).fetchall()
            if not rows:
                raise _lost(lease)
            return self._held(rows[0])

        return await self._db.write(act)

    async def complete(self, lease: Lease, *, outcome: str = "", note: str = "", work: Work = NO_WORK) -> None:
        """See `JobQueue`."""
        changes = f"""state = 'done', ended = 1, error = '', note = :note,
            done_tokens = max(done_tokens, total_tokens), {_RETURN}"""
        await self._finish(lease, changes, work, outcome=outcome, note=note[:2000])

    async def count(self, kind: JobKind, outcome: str) -> None:
        """See `JobQueue`."""
        await self._db.write(lambda connection: _count(connection, kind, outcome))

    async def outcomes(self, kind: JobKind) -> dict[str, int]:
        """See `JobQueue`."""
        rows = self._db.read("SELECT outcome, count FROM job_outcomes WHERE kind = ? ORDER BY outcome", kind)
        return {row["outcome"]: row["count"] for row in rows}

    async def release(self, lease: Lease, *, work: Work = NO_WORK) -> None:
        """See `JobQueue`."""
        await self._finish(lease, f"state = 'queued', not_before_s = 0, {_KEEP}", work)

    async def fail(self, lease: Lease, *, error: str, retry_in_s: float | None, work: Work = NO_WORK) -> None:
        """See `JobQueue`."""
        await self._finish(
            lease,
            "state = :state, failures = failures + 1, error = :error, not_before_s = :now_s + :retry_in_s, "
            + (_RETURN if retry_in_s is None else _KEEP),
            work,
            state="dead" if retry_in_s is None else "waiting" if retry_in_s > 0 else "queued",
            error=error[:2000],
            retry_in_s=retry_in_s or 0.0,
        )

    async def cancel(self, job_id: JobId) -> bool:
        """See `JobQueue`."""

        def act(connection: sqlite3.Connection) -> bool:
            return bool(
                connection.execute(
                    f"""UPDATE jobs SET state = 'cancelled', ended = 1, updated_at_s = ?, {_FREE}, {_RETURN}
                    WHERE id = ? AND state IN {UNFINISHED}""",  # noqa: S608 - constants
                    (self._clock(), job_id),
                ).rowcount
            )

        return await self._db.write(act)

    async def cancel_target(self, *, kind: JobKind, target_prefix: str) -> int:
        """See `JobQueue`."""

        return await self._db.write(lambda connection: cancel_target(connection, kind, target_prefix, self._clock()))

    async def retry(self, job_id: JobId) -> bool:
        """See `JobQueue`."""

        def act(connection: sqlite3.Connection) -> bool:
            rows = connection.execute("SELECT * FROM jobs WHERE id = ? AND state = 'dead'", (job_id,)).fetchall()
            if not rows:
                return False
            (job,) = rows
            self._db.tally.write()
            asked, total = job["asked_tokens"], job["total_tokens"]
            tokens = min(asked, max(0, total - job["kept_tokens"])) if total else asked
            now_s = self._clock()
            self._make_room(connection)
            check(connection, self._rules.budgets, tenant=job["tenant"], user=job["user"], tokens=tokens, now_s=now_s)
            connection.execute(
                """UPDATE jobs SET state = 'queued', failures = 0, lost = 0, not_before_s = 0, error = '',
                    updated_at_s = ?, reserved_tokens = ? WHERE id = ?""",
                (now_s, tokens, job_id),
            )
            return True

        return await self._db.write(act)

    async def depth(self, *, kinds: Sequence[JobKind] | None = None) -> QueueDepth:
        """See `JobQueue`."""
        while self._overdue():
            await self._db.write(self._make_due)
        due = later = leased = tokens = 0
        for row in self._db.read("SELECT * FROM queue_depth"):
            if kinds is None or row["kind"] in kinds:
                due += row["due"]
                later += row["later"]
                leased += row["leased"]
                tokens += row["tokens"]
        return QueueDepth(due=due, later=later, leased=leased, tokens=tokens)

    async def trouble(self) -> Trouble:
        """See `JobQueue`."""
        ((failing, dead),) = self._db.read("SELECT total(failing), total(dead) FROM job_troubles")
        return Trouble(failing=int(failing), dead=int(dead))

    async def holders(self) -> list[WorkerId]:
        """See `JobQueue`."""
        rows = self._db.read(_HELD_BY.format("worker", "true"))
        return [WorkerId(row["worker"]) for row in rows]

    async def reclaim(self, worker: WorkerId) -> int:
        """See `JobQueue`."""

        def act(connection: sqlite3.Connection) -> int:
            return connection.execute(
                f"""UPDATE jobs SET lost = lost + 1, state = iif(lost + 1 >= :most, 'dead', 'queued'),
                    error = iif(lost + 1 >= :most, :error, error), not_before_s = 0, updated_at_s = :now_s, {_FREE},
                    reserved_tokens = iif(lost + 1 >= :most, 0, reserved_tokens)
                WHERE id IN ({_HELD_BY.format("id", "worker = :worker")})""",  # noqa: S608 - constants
                {"worker": worker, "most": MAX_LOST, "error": _SILENCED, "now_s": self._clock()},
            ).rowcount

        return await self._db.write(act)

    async def get(self, job_id: JobId) -> Job | None:
        """See `JobQueue`."""
        rows = self._db.read(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", job_id)  # noqa: S608 - a constant
        return self.job(rows[0]) if rows else None

    async def jobs(self, *, states: Sequence[JobState] | None = None, limit: int = 1000) -> list[Job]:
        """See `JobQueue`."""
        names = [name for state in (JobState if states is None else states) for name in _STATES[state]]
        # Each state by itself lies in the wanted order in its index.
        each = f"SELECT {COLUMNS} FROM (SELECT * FROM jobs WHERE {{}} ORDER BY priority DESC, id LIMIT ?1)"  # noqa: S608
        sql = " UNION ALL ".join(each.format(_of_state(name)) for name in names)
        sql += " ORDER BY priority DESC, id LIMIT ?1"
        return [self.job(row) for row in self._db.read(sql, limit)] if names else []

    async def prune(self, *, older_than_s: float) -> int:
        """See `JobQueue`."""
        before_s = self._clock() - older_than_s
        sql = f"""DELETE FROM jobs WHERE id IN (SELECT id FROM jobs
            WHERE ended AND updated_at_s < ? LIMIT {_PRUNED_AT_ONCE})"""  # noqa: S608
        dropped = 0
        while True:
            gone = await self._db.write(lambda connection: connection.execute(sql, (before_s,)).rowcount)
            dropped += gone
            if gone < _PRUNED_AT_ONCE:
                return dropped

    def _make_room(self, connection: sqlite3.Connection) -> None:
        (unfinished,) = connection.execute("SELECT sum(due + later + leased) FROM queue_depth").fetchone()
        if (unfinished or 0) >= self._rules.max_unfinished:
            raise QueueFull(f"{unfinished} jobs are waiting already", retry_after_s=60)

    def _overdue(self) -> bool:
        return bool(self._db.read(OVERDUE, **self._times())[0][0])

    def _make_due(self, connection: sqlite3.Connection) -> None:
        make_due(connection, self._times(), most_lost=MAX_LOST, error=_SILENCED)

    def _claim(self, connection: sqlite3.Connection, asks: list[_Ask]) -> list[Lease | None]:
        times = self._times()
        if connection.execute(OVERDUE, times).fetchone()[0]:
            self._make_due(connection)
        for asked, group in itertools.groupby(asks, lambda ask: ask.asked):
            alike = list(group)
            askers = [(ask.worker, ask.lease_s) for ask in alike]
            rows = claim(connection, asked, askers, times=times, weights=self._rules.weights, tally=self._db.tally)
            for ask, row in itertools.zip_longest(alike, rows):
                ask.lease = None if row is None else self._held(row)
        return [ask.lease for ask in asks]

    def _give_back(self, connection: sqlite3.Connection, lease: Lease | None) -> None:
        if lease is not None:
            connection.execute(
                f"UPDATE jobs SET state = 'queued', {_FREE} WHERE {_HELD}",  # noqa: S608 - constants
                self._values(lease, NO_WORK),
            )

    async def _finish(self, lease: Lease, changes: str, work: Work, *, outcome: str = "", **values: object) -> None:
        await self._db.together(_end, _End(lease, changes, self._values(lease, work, **values), outcome))

    def _times(self) -> dict[str, object]:
        return {"now_s": self._clock(), "steady_s": self._steady(), "boot": self._boot, "skew_s": SKEW_S}

    def _values(self, lease: Lease, work: Work, **more: object) -> dict[str, object]:
        return {
            "now_s": self._clock(),
            "tokens": work.tokens,
            "seconds": work.seconds,
            "machine": work.machine,
            "id": lease.job.id,
            "fence": lease.fence,
            "worker": lease.worker,
            **more,
        }

    def _held(self, row: Any) -> Lease:
        job = self.job(row)
        assert job.worker is not None
        assert job.lease_expires_at_s is not None
        return Lease(job=job, worker=job.worker, fence=job.attempts, expires_at_s=job.lease_expires_at_s)

    def job(self, row: Any) -> Job:
        """The `COLUMNS` of a row of `jobs`."""
        # By place: a row looks names up one after the other.
        (
            id_, kind, target, tenant, label, priority, state, attempts, failures, lost, not_before_s, done_tokens,
            total_tokens, worker, lease_boot, lease_until_s, error, created_at_s, updated_at_s, note, user, needs,
            reserved_tokens,
        ) = row  # fmt: skip
        expires_at_s = None
        if lease_until_s is not None:
            expires_at_s = self._clock() + (lease_until_s - self._steady() if lease_boot == self._boot else 0.0)
        return Job(
            id=id_,
            kind=_KIND_OF[kind],
            target=target,
            tenant=tenant,
            label=label,
            priority=priority,
            state=_STATE_OF[state],
            attempts=attempts,
            failures=failures,
            lost=lost,
            not_before_s=not_before_s,
            done_tokens=done_tokens,
            total_tokens=total_tokens,
            worker=worker,
            lease_expires_at_s=expires_at_s,
            error=error,
            created_at_s=created_at_s,
            updated_at_s=updated_at_s,
            note=note,
            user=user,
            needs=needs,
            reserved_tokens=reserved_tokens,
        )


def _end(connection: sqlite3.Connection, ends: list[_End]) -> list[None]:
    for changes, group in itertools.groupby(ends, lambda end: end.changes):
        alike = list(group)
        changed = connection.executemany(
            f"UPDATE jobs SET {changes}, updated_at_s = :now_s, {_CHARGE}, {_FREE} WHERE {_HELD}",  # noqa: S608
            [end.values for end in alike],
        ).rowcount
        if changed < len(alike):
            # One of them; each is told by itself then.
            raise _lost(alike[0].lease)
    for end in ends:
        if end.outcome:
            _count(connection, end.lease.job.kind, end.outcome)
    return [None] * len(ends)


def _of_state(name: str) -> str:
    """A condition that has an index."""
    return f"state = '{name}'" + ("" if name == "leased" else f" AND {NOT_LEASED}")


def cancel_target(connection: sqlite3.Connection, kind: JobKind, prefix: str, now_s: float) -> int:
    """See `JobQueue`; as part of another transition."""
    # Between the two bounds lies all that begins so: no character comes after the last one.
    where = "NOT ended AND kind = :kind AND target >= :prefix AND target < :prefix || char(1114111)"
    values = {"kind": kind, "prefix": prefix, "now_s": now_s}
    connection.execute(f"DELETE FROM jobs WHERE {where} AND state = 'dead'", values)  # noqa: S608 - constant
    return connection.execute(
        f"""UPDATE jobs SET state = 'cancelled', ended = 1, updated_at_s = :now_s, {_FREE}, {_RETURN}
        WHERE {where} AND state IN {UNFINISHED}""",  # noqa: S608 - constants
        values,
    ).rowcount


def _count(connection: sqlite3.Connection, kind: JobKind, outcome: str) -> None:
    connection.execute(
        "INSERT INTO job_outcomes VALUES (?, ?, 1) ON CONFLICT (kind, outcome) DO UPDATE SET count = count + 1",
        (kind, outcome),
    )


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"job {lease.job.id} ({lease.job.label}): the lease of {lease.worker} is over")
