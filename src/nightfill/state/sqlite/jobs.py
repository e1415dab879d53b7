"""The job queue in SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.errors import QueueFull, StateUnavailable
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
from nightfill.state.sqlite.leases import (
    FREE,
    HOLDERS,
    MAX_LOST,
    RETURN,
    SILENCED,
    completed,
    count,
    end,
    failed,
    give_back,
    reclaim,
    released,
    renew,
)
from nightfill.state.sqlite.record import STATES, job_of, lease_of
from nightfill.state.sqlite.sums import NOT_LEASED, UNFINISHED, size_of
from nightfill.state.sqlite.turns import COLUMNS, OVERDUE, claim, make_due, wanted

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from nightfill.state.sqlite.database import Database
    from nightfill.state.sqlite.record import Clocks
    from nightfill.state.sqlite.turns import Wanted

_PRUNED_AT_ONCE: Final = 10_000


@dataclass(slots=True)
class _Ask:
    """Somebody's wish for a job, and what came of it."""

    asked: Wanted
    worker: WorkerId
    lease_s: float
    lease: Lease | None = None


class SqliteJobs:
    """See `JobQueue`."""

    def __init__(self, database: Database, *, rules: QueueRules, clocks: Clocks) -> None:
        self._db = database
        self._rules = rules
        self._clocks = clocks
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
                job = job_of(there[0], self._clocks)
                if job.state is JobState.DEAD or job.priority in (ASKED, priority):
                    return job
                changed = connection.execute(
                    f"UPDATE jobs SET priority = ? WHERE id = ? RETURNING {COLUMNS}",  # noqa: S608 - a constant
                    (priority, job.id),
                ).fetchall()
                return job_of(changed[0], self._clocks)
            self._make_room(connection)
            now_s = self._clocks.wall()
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
            return job_of(made[0], self._clocks)

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
            ((overdue, some),) = self._db.read(asked.any, **self._clocks.times(), **asked.values)
            if not overdue and not some:
                return None
        ask = _Ask(asked, worker, lease_s)
        try:
            lease = await self._db.together(self._claim, ask)
        except asyncio.CancelledError:
            # The writer cannot be stopped; what it claims for a caller who has left goes back at once (where the
            # state is closed by now, when the lease expires).
            with contextlib.suppress(StateUnavailable):
                self._db.submit(lambda connection: None if ask.lease is None else give_back(connection, ask.lease))
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
        return await self._db.write(
            lambda connection: renew(
                connection,
                lease,
                work,
                self._clocks,
                lease_s=lease_s,
                done_tokens=done_tokens,
                total_tokens=total_tokens,
                kept_tokens=kept_tokens,
            )
        )

    async def complete(self, lease: Lease, *, outcome: str = "", note: str = "", work: Work = NO_WORK) -> None:
        """See `JobQueue`."""
        await self._db.together(end, completed(lease, work, self._clocks.wall(), outcome=outcome, note=note))

    async def count(self, kind: JobKind, outcome: str) -> None:
        """See `JobQueue`."""
        await self._db.write(lambda connection: count(connection, kind, outcome))

    async def outcomes(self, kind: JobKind) -> dict[str, int]:
        """See `JobQueue`."""
        rows = self._db.read("SELECT outcome, count FROM job_outcomes WHERE kind = ? ORDER BY outcome", kind)
        return {row["outcome"]: row["count"] for row in rows}

    async def release(self, lease: Lease, *, work: Work = NO_WORK) -> None:
        """See `JobQueue`."""
        await self._db.together(end, released(lease, work, self._clocks.wall()))

    async def fail(self, lease: Lease, *, error: str, retry_in_s: float | None, work: Work = NO_WORK) -> None:
        """See `JobQueue`."""
        await self._db.together(end, failed(lease, work, self._clocks.wall(), error=error, retry_in_s=retry_in_s))

    async def cancel(self, job_id: JobId) -> bool:
        """See `JobQueue`."""

        def act(connection: sqlite3.Connection) -> bool:
            return bool(
                connection.execute(
                    f"""UPDATE jobs SET state = 'cancelled', ended = 1, updated_at_s = ?, {FREE}, {RETURN}
                    WHERE id = ? AND state IN {UNFINISHED}""",  # noqa: S608 - constants
                    (self._clocks.wall(), job_id),
                ).rowcount
            )

        return await self._db.write(act)

    async def cancel_target(self, *, kind: JobKind, target_prefix: str) -> int:
        """See `JobQueue`."""
        return await self._db.write(
            lambda connection: cancel_target(connection, kind, target_prefix, self._clocks.wall())
        )

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
            now_s = self._clocks.wall()
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
        rows = self._db.read(HOLDERS)
        return [WorkerId(row["worker"]) for row in rows]

    async def reclaim(self, worker: WorkerId) -> int:
        """See `JobQueue`."""
        return await self._db.write(lambda connection: reclaim(connection, worker, self._clocks.wall()))

    async def get(self, job_id: JobId) -> Job | None:
        """See `JobQueue`."""
        rows = self._db.read(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", job_id)  # noqa: S608 - a constant
        return job_of(rows[0], self._clocks) if rows else None

    async def jobs(self, *, states: Sequence[JobState] | None = None, limit: int = 1000) -> list[Job]:
        """See `JobQueue`."""
        names = [name for state in (JobState if states is None else states) for name in STATES[state]]
        # Each state by itself lies in the wanted order in its index.
        each = f"SELECT {COLUMNS} FROM (SELECT * FROM jobs WHERE {{}} ORDER BY priority DESC, id LIMIT ?1)"  # noqa: S608
        sql = " UNION ALL ".join(each.format(_of_state(name)) for name in names)
        sql += " ORDER BY priority DESC, id LIMIT ?1"
        return [job_of(row, self._clocks) for row in self._db.read(sql, limit)] if names else []

    async def prune(self, *, older_than_s: float) -> int:
        """See `JobQueue`."""
        before_s = self._clocks.wall() - older_than_s
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
        return bool(self._db.read(OVERDUE, **self._clocks.times())[0][0])

    def _make_due(self, connection: sqlite3.Connection) -> None:
        make_due(connection, self._clocks.times(), most_lost=MAX_LOST, error=SILENCED)

    def _claim(self, connection: sqlite3.Connection, asks: list[_Ask]) -> list[Lease | None]:
        times = self._clocks.times()
        if connection.execute(OVERDUE, times).fetchone()[0]:
            self._make_due(connection)
        for asked, group in itertools.groupby(asks, lambda ask: ask.asked):
            alike = list(group)
            askers = [(ask.worker, ask.lease_s) for ask in alike]
            rows = claim(connection, asked, askers, times=times, weights=self._rules.weights, tally=self._db.tally)
            for ask, row in itertools.zip_longest(alike, rows):
                ask.lease = None if row is None else lease_of(row, self._clocks)
        return [ask.lease for ask in asks]


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
        f"""UPDATE jobs SET state = 'cancelled', ended = 1, updated_at_s = :now_s, {FREE}, {RETURN}
        WHERE {where} AND state IN {UNFINISHED}""",  # noqa: S608 - constants
        values,
    ).rowcount
