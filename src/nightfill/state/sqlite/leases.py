"""What becomes of a lease in SQLite: statements about jobs that somebody holds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.errors import LeaseLost
from nightfill.state.sqlite.record import lease_of
from nightfill.state.sqlite.sums import HELD, NOT_LEASED, size_of
from nightfill.state.sqlite.turns import COLUMNS

if TYPE_CHECKING:
    import sqlite3

    from nightfill.state.jobs import JobKind, Lease, Work, WorkerId
    from nightfill.state.sqlite.record import Clocks

MAX_LOST: Final = 20
"""A job whose workers fall silent so often without getting any further is dead: it may be what silences them."""
SILENCED: Final = f"{MAX_LOST} workers in a row fell silent while working on it"

_HELD: Final = f"id = :id AND state IN {HELD} AND attempts = :fence AND worker = :worker"
# Each state has its index.
_HELD_BY: Final = f"""SELECT {{0}} FROM jobs WHERE state = 'leased' AND {{1}}
    UNION SELECT {{0}} FROM jobs WHERE state = 'expired' AND {NOT_LEASED} AND {{1}}"""  # noqa: S608 - constants
HOLDERS: Final = _HELD_BY.format("worker", "true")
FREE: Final = "worker = NULL, lease_boot = NULL, lease_until_s = NULL"
RETURN: Final = "reserved_tokens = 0"
_KEEP: Final = "reserved_tokens = max(0, reserved_tokens - max(0, :tokens - lease_tokens))"
_CHARGE: Final = """lease_tokens = max(lease_tokens, :tokens), lease_s = max(lease_s, :seconds),
    machine = iif(:machine = '', machine, :machine)"""
_COMPLETED: Final = f"""state = 'done', ended = 1, error = '', note = :note,
    done_tokens = max(done_tokens, total_tokens), {RETURN}"""
_RELEASED: Final = f"state = 'queued', not_before_s = 0, {_KEEP}"
_FAILED: Final = "state = :state, failures = failures + 1, error = :error, not_before_s = :now_s + :retry_in_s"


@dataclass(frozen=True, slots=True)
class End:
    """Of a lease."""

    lease: Lease
    changes: str
    values: dict[str, object]
    outcome: str = ""


def completed(lease: Lease, work: Work, now_s: float, *, outcome: str, note: str) -> End:
    """The work is done."""
    return End(lease, _COMPLETED, _values(lease, work, now_s, note=note[:2000]), outcome)


def released(lease: Lease, work: Work, now_s: float) -> End:
    """Somebody else is to go on."""
    return End(lease, _RELEASED, _values(lease, work, now_s))


def failed(lease: Lease, work: Work, now_s: float, *, error: str, retry_in_s: float | None) -> End:
    """It is tried again after so many seconds; None: never."""
    values = _values(
        lease,
        work,
        now_s,
        state="dead" if retry_in_s is None else "waiting" if retry_in_s > 0 else "queued",
        error=error[:2000],
        retry_in_s=retry_in_s or 0.0,
    )
    return End(lease, f"{_FAILED}, {RETURN if retry_in_s is None else _KEEP}", values)


def end(connection: sqlite3.Connection, ends: list[End]) -> list[None]:
    """All of these. Raises LeaseLost when one was over already."""
    for changes, group in itertools.groupby(ends, lambda one: one.changes):
        alike = list(group)
        changed = connection.executemany(
            f"UPDATE jobs SET {changes}, updated_at_s = :now_s, {_CHARGE}, {FREE} WHERE {_HELD}",  # noqa: S608
            [one.values for one in alike],
        ).rowcount
        if changed < len(alike):
            # One of them; each is told by itself then.
            raise _lost(alike[0].lease)
    for one in ends:
        if one.outcome:
            count(connection, one.lease.job.kind, one.outcome)
    return [None] * len(ends)


def renew(
    connection: sqlite3.Connection,
    lease: Lease,
    work: Work,
    clocks: Clocks,
    *,
    lease_s: float,
    done_tokens: int,
    total_tokens: int,
    kept_tokens: int,
) -> Lease:
    """See `JobQueue`."""
    rows = connection.execute(
        f"""UPDATE jobs SET state = 'leased', lease_boot = :boot, lease_until_s = :until_s, done_tokens = :done,
            total_tokens = :total, size = :size, updated_at_s = :now_s,
            lost = iif(:kept > kept_tokens, 0, lost), failures = iif(:kept > kept_tokens, 0, failures),
            kept_tokens = max(kept_tokens, :kept), {_KEEP}, {_CHARGE}
        WHERE {_HELD} RETURNING {COLUMNS}""",  # noqa: S608 - constants
        _values(
            lease,
            work,
            clocks.wall(),
            boot=clocks.boot,
            until_s=clocks.steady() + lease_s,
            done=done_tokens,
            total=total_tokens,
            size=size_of(total_tokens),
            kept=kept_tokens,
        ),
    ).fetchall()
    if not rows:
        raise _lost(lease)
    return lease_of(rows[0], clocks)


def give_back(connection: sqlite3.Connection, lease: Lease) -> None:
    """As if it had never been given."""
    connection.execute(
        f"UPDATE jobs SET state = 'queued', {FREE} WHERE {_HELD}",  # noqa: S608 - constants
        {"id": lease.job.id, "fence": lease.fence, "worker": lease.worker},
    )


def reclaim(connection: sqlite3.Connection, worker: WorkerId, now_s: float) -> int:
    """See `JobQueue`."""
    return connection.execute(
        f"""UPDATE jobs SET lost = lost + 1, state = iif(lost + 1 >= :most, 'dead', 'queued'),
            error = iif(lost + 1 >= :most, :error, error), not_before_s = 0, updated_at_s = :now_s, {FREE},
            reserved_tokens = iif(lost + 1 >= :most, 0, reserved_tokens)
        WHERE id IN ({_HELD_BY.format("id", "worker = :worker")})""",  # noqa: S608 - constants
        {"worker": worker, "most": MAX_LOST, "error": SILENCED, "now_s": now_s},
    ).rowcount


def count(connection: sqlite3.Connection, kind: JobKind, outcome: str) -> None:
    """One more job of this kind ended so."""
    connection.execute(
        "INSERT INTO job_outcomes VALUES (?, ?, 1) ON CONFLICT (kind, outcome) DO UPDATE SET count = count + 1",
        (kind, outcome),
    )


def _values(lease: Lease, work: Work, now_s: float, **more: object) -> dict[str, object]:
    return {
        "now_s": now_s,
        "tokens": work.tokens,
        "seconds": work.seconds,
        "machine": work.machine,
        "id": lease.job.id,
        "fence": lease.fence,
        "worker": lease.worker,
        **more,
    }


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"job {lease.job.id} ({lease.job.label}): the lease of {lease.worker} is over")
