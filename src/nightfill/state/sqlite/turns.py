"""Which job is next: whose turn it is among the tenants, and what of theirs a worker can do.

A tenant's `served` is the virtual time of start-time fair queueing (Goyal, Vin and Cheng, 1996): tokens leased to it,
over its weight. The lowest one is next, and begins where the queue is by now if it is behind: whoever could not be
served for a while, for want of the right engine, does not keep those waiting who come now. All of this looks at
tenants and lanes, of which there are few, and never at more than the first job of a lane, but in one case: among jobs
of about the length of `max_tokens` those that are longer are passed over.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nightfill.state.jobs import JobKind
from nightfill.state.sqlite.sums import DUE, size_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from nightfill.state.jobs import WorkerId

COLUMNS: Final = """id, kind, target, tenant, label, priority, state, attempts, failures, lost, not_before_s,
    done_tokens, total_tokens, worker, lease_boot, lease_until_s, error, created_at_s, updated_at_s, note, user, needs,
    reserved_tokens"""
"""Of a row of `jobs`, what a `Job` is made of."""
SKEW_S: Final = 60.0
_BATCH: Final = 1000
"""Jobs that one transaction makes due, so that others need not wait for long."""
_WAITED: Final = (
    "state = 'waiting' AND not_before_s <= :now_s",
    # Written at a time that is still to come: the clock was set back.
    "state = 'waiting' AND updated_at_s > :now_s + :skew_s",
)
_EXPIRED: Final = (
    "state = 'leased' AND lease_boot = :boot AND lease_until_s <= :steady_s",
    "state = 'leased' AND lease_boot < :boot",
    "state = 'leased' AND lease_boot > :boot",
)
_SOME: Final = [f"EXISTS (SELECT 1 FROM jobs WHERE {those})" for those in _WAITED + _EXPIRED]  # noqa: S608
OVERDUE: Final = f"SELECT {' OR '.join(_SOME)}"
"""Whether time has made jobs due that nobody has told yet. Takes `now_s`, `skew_s`, `steady_s` and `boot`."""


def make_due(connection: sqlite3.Connection, times: Mapping[str, object], *, most_lost: int, error: str) -> None:
    """What waited long enough is due, and so is what has lost its worker, unless it was the `most_lost`th."""

    def those(wheres: tuple[str, ...]) -> str:
        return " UNION ALL ".join(f"SELECT id FROM jobs WHERE {where}" for where in wheres)  # noqa: S608 - constants

    values = {**times, "most": most_lost, "error": error}
    connection.execute(
        f"UPDATE jobs SET state = 'queued' WHERE id IN ({those(_WAITED)} LIMIT {_BATCH})",  # noqa: S608 - constants
        values,
    )
    connection.execute(
        f"""UPDATE jobs SET state = 'dead', lost = lost + 1, error = :error, updated_at_s = :now_s, worker = NULL,
            lease_boot = NULL, lease_until_s = NULL, reserved_tokens = 0
        WHERE id IN ({those(_EXPIRED)}) AND lost + 1 >= :most""",  # noqa: S608 - constants
        values,
    )
    connection.execute(
        f"UPDATE jobs SET state = 'expired' WHERE id IN ({those(_EXPIRED)} LIMIT {_BATCH})",  # noqa: S608 - constants
        values,
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker asks for, as statements. Both take `values`, `any` also those of `OVERDUE`."""

    any: str
    """Whether time has made jobs due that nobody has told yet, and whether one is due."""
    next: str
    """The tenant whose turn it is, its first job, and the virtual times of the tenant and of the queue."""
    values: Mapping[str, object]


@functools.lru_cache(maxsize=64)
def wanted(
    kinds: tuple[JobKind, ...], needs: tuple[str, ...] | None, max_tokens: int | None, min_priority: float | None
) -> Wanted:
    """See `JobQueue.lease`. A worker asks for the same again and again."""
    marks = ", ".join(f"'{JobKind(kind)}'" for kind in kinds)
    lanes, jobs = f"l.kind IN ({marks})", ""
    values: dict[str, object] = {}
    if needs is not None:
        names = {f"need{n}": need for n, need in enumerate(dict.fromkeys(["", *needs]))}
        lanes += f" AND l.needs IN ({', '.join(':' + name for name in names)})"
        values |= names
    if max_tokens is not None:
        lanes += " AND l.size <= :size"
        jobs += " AND j.total_tokens <= :max_tokens"
        values |= {"size": size_of(max_tokens), "max_tokens": max_tokens}
    if min_priority is not None:
        jobs += " AND j.priority >= :min_priority"
        values["min_priority"] = min_priority

    def first(column: str) -> str:
        """Of the first job of a lane; the index has it."""
        return f"""SELECT j.{column} FROM jobs j INDEXED BY jobs_due WHERE j.state IN {DUE} AND j.tenant = l.tenant
            AND j.kind = l.kind AND j.needs = l.needs AND j.size = l.size{jobs}
            ORDER BY j.priority DESC, j.id LIMIT 1"""  # noqa: S608 - constants

    if min_priority is None:
        some = f"SELECT 1 FROM lanes l WHERE {lanes} AND EXISTS ({first('id')})"  # noqa: S608 - constants
    else:
        # Most lanes have none of such a rank.
        some = f"""SELECT 1 FROM jobs j INDEXED BY jobs_by_state
            WHERE j.state IN {DUE}{jobs} AND {lanes.replace("l.", "j.")}"""  # noqa: S608 - constants
    return Wanted(
        any=f"{OVERDUE}, EXISTS ({some})",
        # A tenant is looked at when those before it have nothing: what has a limit is not folded into what contains it.
        next=f"""SELECT tenant, id, served, (SELECT served FROM turn) FROM (
            SELECT t.tenant, t.served, (
                SELECT id FROM (SELECT ({first("id")}) AS id, ({first("priority")}) AS priority
                    FROM lanes l WHERE l.tenant = t.tenant AND {lanes} LIMIT -1)
                WHERE id IS NOT NULL ORDER BY priority DESC, id LIMIT 1
            ) AS id FROM turns t INDEXED BY turns_next WHERE t.due > 0 ORDER BY t.served, t.tenant LIMIT -1
        ) WHERE id IS NOT NULL LIMIT 1""",  # noqa: S608 - constants
        values=values,
    )


def claim(
    connection: sqlite3.Connection,
    asked: Wanted,
    times: Mapping[str, object],
    *,
    worker: WorkerId,
    lease_s: float,
    weights: Mapping[str, float],
) -> Any:
    """Lease the next job: its row, or None when none is due."""
    turn = connection.execute(asked.next, asked.values).fetchall()
    if not turn:
        return None
    tenant, job, served, queue = turn[0]
    (row,) = connection.execute(
        f"""UPDATE jobs SET lost = lost + (state = 'expired'), state = 'leased', worker = :worker,
            attempts = attempts + 1, lease_boot = :boot, lease_until_s = :steady_s + :lease_s, updated_at_s = :now_s,
            lease_tokens = 0, lease_s = 0, machine = ''
        WHERE id = :job RETURNING {COLUMNS}""",  # noqa: S608 - constants
        {**times, "worker": worker, "lease_s": lease_s, "job": job},
    ).fetchall()
    begin = max(served, queue)
    cost = max(1, row["total_tokens"] - row["done_tokens"]) / weights.get(tenant, 1.0)
    connection.execute("UPDATE turns SET served = ? WHERE tenant = ?", (begin + cost, tenant))
    if begin > queue:
        connection.execute("UPDATE turn SET served = ?", (begin,))
    return row
