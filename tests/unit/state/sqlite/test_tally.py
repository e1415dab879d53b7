"""The sums of the file, whatever is asked for together and whatever of it fails."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from nightfill.errors import LeaseLost, StateUnavailable
from nightfill.state.jobs import JobKind, Lease, QueueRules, Work, WorkerId
from nightfill.state.sqlite import SqliteState, open_state
from nightfill.state.sqlite.sums import DUE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from nightfill.state.jobs import JobQueue
    from nightfill.state.sqlite.database import Database

FILL, VERIFY = JobKind.FILL, JobKind.VERIFY
A = WorkerId("a")
RULES = QueueRules(weights={"t1": 2.0})
SUMS = {
    "queue_depth": f"""SELECT kind, sum(state IN {DUE}), sum(state = 'waiting'), sum(state = 'leased'),
        sum(iif(ended OR state = 'dead', 0, max(0, total_tokens - done_tokens))) FROM jobs GROUP BY kind""",  # noqa: S608 - constants
    "job_troubles": """SELECT kind, sum(failures > 0 AND NOT ended AND state <> 'dead') AS failing,
        sum(state = 'dead') AS dead FROM jobs GROUP BY kind HAVING failing OR dead""",
    "lanes": f"""SELECT tenant, kind, needs, size, count(*),
        (SELECT id FROM jobs f WHERE (f.tenant, f.kind, f.needs, f.size) = (j.tenant, j.kind, j.needs, j.size)
            AND f.state IN {DUE} ORDER BY f.priority DESC, f.id LIMIT 1), max(priority)
        FROM jobs j WHERE state IN {DUE} GROUP BY tenant, kind, needs, size""",  # noqa: S608 - constants
    "turns": f"SELECT tenant, sum(state IN {DUE}) AS due FROM jobs GROUP BY tenant HAVING due",  # noqa: S608 - constants
    "budget_reserved": """SELECT level, tenant, user, sum(tokens) AS aside FROM (
            SELECT 0 AS level, '' AS tenant, '' AS user, reserved_tokens AS tokens FROM jobs
            UNION ALL SELECT 1, tenant, '', reserved_tokens FROM jobs
            UNION ALL SELECT 2, tenant, user, reserved_tokens FROM jobs WHERE user <> '')
        GROUP BY level, tenant, user HAVING aside""",
}
"""What each must hold, by the jobs alone."""
KEPT = {
    "job_troubles": "SELECT * FROM job_troubles WHERE failing OR dead",
    "turns": "SELECT tenant, due FROM turns WHERE due",
    "budget_reserved": "SELECT * FROM budget_reserved WHERE tokens",
}


def audit(path: Path) -> None:
    connection = sqlite3.connect(path)
    try:
        for name, said in SUMS.items():
            kept = connection.execute(KEPT.get(name, f"SELECT * FROM {name}")).fetchall()  # noqa: S608
            assert sorted(kept) == sorted(connection.execute(said).fetchall()), name
    finally:
        connection.close()


async def enqueue(state: SqliteState, target: str, **of: Any) -> None:
    given = {"kind": FILL, "tenant": "t", "label": "l", "priority": 1.0, **of}
    await state.jobs.enqueue(target=target, **given)


def ask(rng: random.Random, jobs: JobQueue, held: list[Lease]) -> Coroutine[Any, Any, object]:
    """Something, with leases that may be over by now."""
    tenant, lease = f"t{rng.randrange(3)}", rng.choice(held) if held else None
    work = Work(tokens=rng.randrange(50), seconds=1.0, machine="m")
    if lease is None or rng.random() < 0.4:
        return jobs.enqueue(
            kind=rng.choice((FILL, VERIFY)),
            target=f"{tenant}/{rng.randrange(40)}",
            tenant=tenant,
            label="l",
            priority=rng.random(),
            total_tokens=rng.randrange(5000),
            user=rng.choice(("", "ann")),
            needs=rng.choice(("", "sig")),
            reserve_tokens=100,
        )
    acts: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: jobs.renew(lease, lease_s=9.0, done_tokens=rng.randrange(3000), total_tokens=4000, work=work),
        lambda: jobs.fail(lease, error="x", retry_in_s=rng.choice((None, 0.0, 4.0)), work=work),
        lambda: jobs.release(lease, work=work),
        lambda: jobs.complete(lease, work=work, outcome="well"),
        lambda: jobs.complete(lease, work=work),
        lambda: jobs.cancel(lease.job.id),
        lambda: jobs.retry(lease.job.id),
        lambda: jobs.cancel_target(kind=FILL, target_prefix=f"{tenant}/1"),
    ]
    return rng.choice(acts)()


@pytest.mark.parametrize("seed", range(4))
async def test_sums_are_what_the_jobs_say_whatever_is_asked_for_together(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "s.db"
    now_s = 1_700_000_000.0
    clocks: Any = {"clock": lambda: now_s, "steady": lambda: now_s, "boot": "a boot"}
    held: list[Lease] = []

    async with open_state(path, rules=RULES, **clocks) as one, open_state(path, rules=RULES, **clocks) as other:
        for _ in range(60):
            asked = [ask(rng, rng.choice((one, other)).jobs, held) for _ in range(rng.randrange(8))]
            for _ in range(rng.randrange(4)):
                wish: Any = {"kinds": [FILL, VERIFY], "max_tokens": rng.choice((None, 3000))}
                asked.append(rng.choice((one, other)).jobs.lease(A, lease_s=rng.choice((5.0, 50.0)), **wish))
            for told in await asyncio.gather(*asked, return_exceptions=True):
                assert not isinstance(told, BaseException) or isinstance(told, LeaseLost)
                if isinstance(told, Lease):
                    held = [*held[-20:], told]
            now_s += rng.choice((0.0, 1.0, 6.0))
            audit(path)


async def test_jobs_leased_together_are_those_that_would_be_leased_one_by_one(tmp_path: Path) -> None:
    async with open_state(tmp_path / "1.db", rules=RULES) as alone, open_state(tmp_path / "2.db", rules=RULES) as many:
        rng = random.Random(1)
        for n in range(120):
            of = {"tenant": f"t{rng.choice((0, 0, 0, 1, 1, 2))}", "priority": rng.randrange(5), "needs": f"{n % 2}"}
            for state in (alone, many):
                await enqueue(state, f"{n}", total_tokens=500 + 37 * n, **of)
        wish: Any = {"kinds": [FILL], "lease_s": 30.0, "needs": ["0", "1"], "max_tokens": 4000}
        one_by_one = [await alone.jobs.lease(A, **wish) for _ in range(96)]
        together = []
        for _ in range(3):
            together += await asyncio.gather(*(many.jobs.lease(A, **wish) for _ in range(32)))
        targets = [None if lease is None else lease.job.target for lease in one_by_one]
        assert [None if lease is None else lease.job.target for lease in together] == targets
        assert targets[90] is not None
        assert targets[95] is None
        assert [lease.job.state for lease in together if lease] == [lease.job.state for lease in one_by_one if lease]


async def test_what_is_undone_moves_no_sum(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_state(path) as state:
        await enqueue(state, "x", total_tokens=7, reserve_tokens=5)
        database: Database = state._database

        def half(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE jobs SET state = 'dead', reserved_tokens = 0")
            connection.execute("INSERT INTO nowhere VALUES (1)")

        with pytest.raises(StateUnavailable, match="nowhere"):
            await database.write(half)
        await enqueue(state, "y", reserve_tokens=3)
        audit(path)
        assert (await state.jobs.depth()).due == 2


async def test_a_lane_that_names_a_job_which_somebody_has_gives_the_one_that_is_due(tmp_path: Path) -> None:
    """The file was written by hand, past the sums."""
    async with open_state(tmp_path / "s.db") as state:
        await enqueue(state, "first", priority=2.0)
        await enqueue(state, "second")
        first = await state.jobs.lease(A, kinds=[FILL], lease_s=30)
        assert first is not None
        with sqlite3.connect(tmp_path / "s.db") as raw:
            raw.execute("UPDATE lanes SET first = ?", (first.job.id,))
        raw.close()
        second = await state.jobs.lease(A, kinds=[FILL], lease_s=30)
        assert second is not None
        assert second.job.target == "second"
