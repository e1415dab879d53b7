"""Which job is next: whose turn it is among the tenants, and what of theirs a worker can do.

A tenant's `served` is the virtual time of start-time fair queueing (Goyal, Vin and Cheng, 1996): tokens leased to it,
over its weight. The lowest one is next, and begins where the queue is by now if it is behind: whoever could not be
served for a while, for want of the right engine, does not keep those waiting who come now. All of this looks at
tenants and lanes, of which there are few, and never at more than the first job of a lane, which the lane knows, but in
one case: among jobs of about the length of `max_tokens` those that are longer are passed over. Workers who ask for the
same at one time are served by one look, each as if it had asked alone.
"""

from __future__ import annotations

import functools
import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nightfill.state.jobs import JobKind
from nightfill.state.sqlite.sums import DUE, DUE_STATES, NOT_LEASED, size_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from nightfill.state.jobs import WorkerId
    from nightfill.state.sqlite.tally import Tally

COLUMNS: Final = (
    "id, kind, target, tenant, label, priority, state, attempts, failures, lost, not_before_s, done_tokens, "
    "total_tokens, worker, lease_boot, lease_until_s, error, created_at_s, updated_at_s, note, user, needs, "
    "reserved_tokens"
)
"""Of a row of `jobs`, what a `Job` is made of."""
_TENANT, _STATE, _ATTEMPTS, _LOST, _DONE, _TOTAL, _UPDATED = (
    COLUMNS.split(", ").index(name)
    for name in ("tenant", "state", "attempts", "lost", "done_tokens", "total_tokens", "updated_at_s")
)
_LEASE: Final = slice(_TOTAL + 1, _TOTAL + 4)
"""`worker`, `lease_boot` and `lease_until_s`."""
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
    """What a worker asks for, as statements. All take `values`, `any` also those of `OVERDUE`."""

    any: str
    """Whether time has made jobs due that nobody has told yet, and whether one is due."""
    next: str
    """The `limit` tenants whose turn it is, the first job of each, and the virtual times of each and of the queue."""
    again: str
    """The first job of `tenant`."""
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
        jobs += " AND {0}.total_tokens <= :max_tokens"
        values |= {"size": size_of(max_tokens), "max_tokens": max_tokens}
    if min_priority is not None:
        jobs += " AND {0}.priority >= :min_priority"
        values["min_priority"] = min_priority

    def first(column: str) -> str:
        """Of the first job of a lane that is wanted, by the index."""
        return f"""SELECT f.{column} FROM jobs f INDEXED BY jobs_due WHERE f.state IN {DUE} AND f.tenant = l.tenant
            AND f.kind = l.kind AND f.needs = l.needs AND f.size = l.size{jobs.format("f")}
            ORDER BY f.priority DESC, f.id LIMIT 1"""  # noqa: S608 - constants

    # The lane knows its first job, but where some of its jobs are too long.
    known = "NULL" if max_tokens is None else "l.size = :size"
    job, priority = (
        f"iif({known}, ({first(column)}), l.{column})".replace("l.id", "l.first") for column in ("id", "priority")
    )
    if min_priority is None:
        some = f"SELECT 1 FROM lanes l WHERE {lanes} AND {job} IS NOT NULL"  # noqa: S608 - constants
    else:
        # Most lanes have none of such a rank.
        some = f"""SELECT 1 FROM jobs j INDEXED BY jobs_by_state
            WHERE j.state IN {DUE} AND j.{NOT_LEASED}{jobs.format("j")} AND {lanes.replace("l.", "j.")}"""  # noqa: S608 - constants
        lanes += " AND l.priority >= :min_priority"
    row = f"j.{COLUMNS.replace(', ', ', j.')}"
    # A tenant is looked at when those before it have nothing: what has a limit is not folded into what contains it.
    return Wanted(
        any=f"{OVERDUE}, EXISTS ({some})",
        next=f"""SELECT {row}, n.served, (SELECT served FROM turn) FROM (
            SELECT * FROM (SELECT t.served, t.tenant, (
                SELECT id FROM (SELECT {job} AS id, {priority} AS priority
                    FROM lanes l WHERE l.tenant = t.tenant AND {lanes} LIMIT -1)
                WHERE id IS NOT NULL ORDER BY priority DESC, id LIMIT 1
            ) AS id FROM turns t INDEXED BY turns_next WHERE t.due > 0 ORDER BY t.served, t.tenant LIMIT -1)
            WHERE id IS NOT NULL LIMIT :limit
        ) n CROSS JOIN jobs j ON j.id = n.id""",  # noqa: S608 - constants
        again=f"""SELECT {row} FROM lanes l CROSS JOIN jobs j ON j.id = ({first("id")})
            WHERE l.tenant = :tenant AND {lanes} ORDER BY j.priority DESC, j.id LIMIT 1""",  # noqa: S608 - constants
        values=values,
    )


_CLAIM: Final = """UPDATE jobs SET lost = ?, state = 'leased', worker = ?, attempts = ?, lease_boot = ?,
    lease_until_s = ?, updated_at_s = ?, lease_tokens = 0, lease_s = 0, machine = '' WHERE id = ?"""


def claim(
    connection: sqlite3.Connection,
    asked: Wanted,
    askers: Sequence[tuple[WorkerId, float]],
    *,
    times: Mapping[str, Any],
    weights: Mapping[str, float],
    tally: Tally,
) -> list[Any]:
    """Lease the next jobs to these workers for so many seconds: `COLUMNS` of each, none for those who come too late."""
    tally.write()
    found = connection.execute(asked.next, {**asked.values, "limit": len(askers)}).fetchall()
    if not found:
        return []
    queue = begun = found[0][-1]
    # A heap: the tenant with the lowest virtual time comes first. None: its next job is to be looked for.
    turns: list[tuple[float, str, Any]] = [
        (row[-2], row[_TENANT], row[:-2] if row[_STATE] in DUE_STATES else None) for row in found
    ]
    heapq.heapify(turns)
    rows: list[Any] = []
    claims: list[tuple[Any, ...]] = []
    for worker, lease_s in askers:
        while turns and turns[0][2] is None:
            # It had its turn, and has it again already.
            connection.executemany(_CLAIM, claims)
            claims.clear()
            served, tenant, _ = turns[0]
            following = connection.execute(asked.again, {**asked.values, "tenant": tenant}).fetchone()
            if following is None:
                heapq.heappop(turns)
            else:
                turns[0] = (served, tenant, following)
        if not turns:
            break
        served, tenant, job = turns[0]
        row = list(job)
        row[_LOST] += row[_STATE] == "expired"
        row[_STATE] = "leased"
        row[_ATTEMPTS] += 1
        lease = (worker, times["boot"], times["steady_s"] + lease_s)
        row[_LEASE] = lease
        row[_UPDATED] = times["now_s"]
        claims.append((row[_LOST], worker, row[_ATTEMPTS], *lease[1:], times["now_s"], row[0]))
        rows.append(row)
        queue = max(served, queue)
        served = queue + max(1, row[_TOTAL] - row[_DONE]) / weights.get(tenant, 1.0)
        tally.serve(tenant, served)
        heapq.heapreplace(turns, (served, tenant, None))
    connection.executemany(_CLAIM, claims)
    if queue > begun:
        connection.execute("UPDATE turn SET served = ?", (queue,))
    return rows
