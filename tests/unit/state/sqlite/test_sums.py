"""What the file keeps beside its jobs: brought along from earlier schemas, and looked up instead of counted."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest

from fakes.balance import balanced
from nightfill.contexts.context import ContextName, Tenant
from nightfill.errors import LeaseLost, StateUnavailable
from nightfill.state.access import Usage
from nightfill.state.budgets import BudgetRules, Period
from nightfill.state.jobs import ASKED, JobKind, JobState, QueueDepth, QueueRules, Work, WorkerId
from nightfill.state.sqlite import SqliteState, open_state
from nightfill.state.sqlite.schema import STEPS, migrate
from nightfill.state.sqlite.sums import size_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW_S = 1_700_000_000.0
FILL, VERIFY = JobKind.FILL, JobKind.VERIFY
A = WorkerId("a")


@contextlib.contextmanager
def plain(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


async def enqueue(state: SqliteState, target: str, **of: Any) -> None:
    given = {"kind": FILL, "tenant": "t", "label": "l", "priority": 1.0, **of}
    await state.jobs.enqueue(target=target, **given)


async def test_a_file_of_the_third_schema_keeps_all_that_it_had(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with plain(path) as old:
        migrate(old, steps=STEPS[:3])
        insert = """INSERT INTO jobs (kind, target, tenant, label, priority, state, not_before_s, total_tokens,
            done_tokens, worker, lease_boot, lease_until_s, created_at_s, updated_at_s, attempts)
            VALUES (?, ?, ?, 'repo', ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, 3)"""
        now_s = NOW_S
        for row in [
            ("fill", "t/1", "t", 5.0, "queued", 0.0, 3000, 1000, None, None, None, now_s),
            ("fill", "t/2", "u", 4.0, "queued", now_s + 50, 500, 0, None, None, None, now_s),
            ("verify", "t/1", "t", 3.0, "queued", 0.0, 0, 0, None, None, None, now_s),
            ("fill", "t/3", "t", 2.0, "leased", 0.0, 700, 100, "old worker", "a boot", 130.0, now_s),
            ("fill", "t/4", "t", 1.0, "dead", 0.0, 900, 0, None, None, None, now_s),
            ("fill", "t/4", "t", 1.0, "done", 0.0, 900, 900, None, None, None, now_s),
            ("fill", "t/5", "t", 1.0, "cancelled", 0.0, 900, 0, None, None, None, now_s),
        ]:
            old.execute(insert, row)
        access = """INSERT INTO accesses (at_s, tenant, context, form, model, layer, prompt_tokens, promised_tokens,
            reused_tokens, output_tokens, ttft_s, total_s, restore_s, status, broken)
            VALUES (?, 't', ?, 'chat', 'm', 'fill', 9, 8, 8, 1, 0.1, 0.2, 0.0, 200, ?)"""
        for at_s, name, broken in [(now_s - 5, "repo", 0), (now_s - 4, "repo", 1), (now_s - 7200, "repo", 0)]:
            old.execute(access, (at_s, name, broken))
        old.execute(access, (now_s, None, 0))
        old.execute("INSERT INTO versions VALUES ('t', 'f', x'', 0, 1.0)")
        old.execute("INSERT INTO contexts VALUES ('t', 'repo', x'', 'chat', 0, NULL, 'f', 1.0, 1.0, 1.0)")
    async with open_state(path, clock=lambda: NOW_S, steady=lambda: 100.0, boot="a boot") as state:
        left = 2000 + 500 + 600
        assert await state.jobs.depth() == QueueDepth(due=2, later=1, leased=1, tokens=left)
        assert [
            (job.target, job.state, job.user, job.needs, job.reserved_tokens) for job in await state.jobs.jobs()
        ] == [
            ("t/1", JobState.QUEUED, "", "", 0),
            ("t/2", JobState.QUEUED, "", "", 0),
            ("t/1", JobState.QUEUED, "", "", 0),
            ("t/3", JobState.LEASED, "", "", 0),
            ("t/4", JobState.DEAD, "", "", 0),
            ("t/4", JobState.DONE, "", "", 0),
            ("t/5", JobState.CANCELLED, "", "", 0),
        ]
        hour = int(NOW_S // 3600)
        assert await state.access.usage(Tenant("t"), ContextName("repo"), now_s=NOW_S) == Usage(
            last_access_s=NOW_S - 4, accesses_7d=3, broken_7d=1, hours={hour: 2, hour - 2: 1}
        )
        (context,) = await state.book.contexts()
        assert context.user == ""
        first = await state.jobs.lease(A, kinds=[FILL], lease_s=30, max_tokens=4096)
        assert first is not None
        assert (first.job.target, first.fence) == ("t/1", 4)
        assert await state.jobs.lease(A, kinds=[FILL], lease_s=30) is None
        with plain(path) as raw, pytest.raises(sqlite3.IntegrityError):
            raw.execute("UPDATE jobs SET ended = 0 WHERE state = 'done'")
    async with open_state(path, clock=lambda: NOW_S + 51, steady=lambda: 151.0, boot="a boot") as state:
        assert await state.jobs.depth() == QueueDepth(due=4, later=0, leased=0, tokens=left)


@pytest.mark.parametrize("tokens", [0, 1, 1024, 1025, 2048, 2049, 200_000, 1 << 30, (1 << 30) + 1, 1 << 40])
async def test_the_file_and_we_agree_on_how_long_a_job_is(tmp_path: Path, tokens: int) -> None:
    async with open_state(tmp_path / "s.db") as state:
        await enqueue(state, "x", total_tokens=tokens)
        with plain(tmp_path / "s.db") as raw:
            assert raw.execute("SELECT size FROM jobs").fetchone()[0] == size_of(tokens)


async def test_no_statement_of_the_queue_goes_through_all_jobs(tmp_path: Path) -> None:
    rules = QueueRules(budgets=BudgetRules(user_day=10_000, tenant_month=100_000, all_day=100_000))
    steady_s = 100.0
    async with open_state(tmp_path / "s.db", rules=rules, steady=lambda: steady_s) as state:
        said: set[str] = set()
        for connection in (state._database._writer, state._database._reader):
            connection.set_trace_callback(said.add)
        jobs = state.jobs
        for n in range(6):
            await enqueue(state, f"t/{n}", user="ann", needs="sig", total_tokens=2000, reserve_tokens=100)
        await enqueue(state, "t/1", priority=3.0)
        asked: list[dict[str, Any]] = [
            {},
            {"needs": ["sig"], "max_tokens": 2500},
            {"needs": ["sig"], "min_priority": 0.5, "max_tokens": 4096},
            {"min_priority": ASKED},
        ]
        held = [await jobs.lease(A, kinds=[FILL, VERIFY], lease_s=30, **of) for of in asked]
        one, two, three, none = held
        assert one is not None
        assert two is not None
        assert three is not None
        assert none is None
        work = Work(tokens=10, seconds=1.0, machine="m")
        one = await jobs.renew(one, lease_s=30, done_tokens=5, total_tokens=2000, work=work)
        await jobs.complete(one, work=work, outcome="well")
        await jobs.fail(two, error="x", retry_in_s=9)
        await jobs.fail(three, error="x", retry_in_s=None)
        assert await jobs.retry(three.job.id)
        await jobs.cancel(three.job.id)
        assert await jobs.lease(A, kinds=[FILL], lease_s=30) is not None
        steady_s += 31
        await jobs.depth()
        await jobs.reclaim(A)
        await jobs.holders()
        await jobs.jobs(limit=5)
        await jobs.cancel_target(kind=FILL, target_prefix="t/5")
        await jobs.prune(older_than_s=-1)
        await state.budgets.lines()
        for connection in (state._database._writer, state._database._reader):
            connection.set_trace_callback(None)
        plans = 0
        # Those that are leased are few: there is an index of them alone.
        through_all = (
            r"SCAN (jobs|j|f|budget_spent|ledger|access_hours|lanes)\b(?! USING (COVERING )?INDEX jobs_leased)"
        )
        with plain(tmp_path / "s.db") as raw:
            for statement in said:
                if not re.match(r"\s*(SELECT|UPDATE|INSERT|DELETE)", statement):
                    continue
                for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}"):
                    plans += 1
                    assert not re.match(through_all, row[3]), statement
        assert plans > 30


async def test_a_look_that_finds_nothing_takes_no_write_lock(tmp_path: Path) -> None:
    async with open_state(tmp_path / "s.db") as state:
        await enqueue(state, "x", needs="other", total_tokens=5000)
        with plain(tmp_path / "s.db") as other:
            other.execute("BEGIN IMMEDIATE")
            async with asyncio.timeout(2):
                for of in ({"needs": ["sig"]}, {"max_tokens": 4096}, {"max_tokens": 4999}, {"min_priority": ASKED}):
                    assert await state.jobs.lease(A, kinds=[FILL], lease_s=30, **of) is None
                assert await state.jobs.lease(A, kinds=[VERIFY], lease_s=30) is None
                assert (await state.jobs.depth()).due == 1
            other.execute("ROLLBACK")


async def test_writes_asked_for_at_once_fail_each_by_itself(tmp_path: Path) -> None:
    async with open_state(tmp_path / "s.db") as state:
        for n in range(6):
            await enqueue(state, f"t/{n}", reserve_tokens=10)
        held = [await state.jobs.lease(A, kinds=[FILL], lease_s=30) for _ in range(6)]
        lost = held[2]
        assert lost is not None
        await state.jobs.cancel(lost.job.id)
        ends = [state.jobs.complete(lease, outcome="well", work=Work(tokens=7)) for lease in held if lease is not None]
        told = await asyncio.gather(*ends, return_exceptions=True)
        assert [type(each) for each in told] == [type(None)] * 2 + [LeaseLost] + [type(None)] * 3
        assert await state.jobs.outcomes(FILL) == {"well": 5}
        assert len(await state.jobs.jobs(states=[JobState.DONE])) == 5
        lines = await balanced(state, now_s=time.time())
        assert {line.spent for line in lines.values()} == {35}


async def test_a_file_that_cannot_be_written_fails_all_who_wait_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightfill.state.sqlite.database.BUSY_S", 0.05)
    async with open_state(tmp_path / "s.db") as state:
        with plain(tmp_path / "s.db") as other:
            other.execute("BEGIN IMMEDIATE")
            async with asyncio.timeout(2):
                told = await asyncio.gather(*(enqueue(state, f"t/{n}") for n in range(30)), return_exceptions=True)
            assert {type(each) for each in told} == {StateUnavailable}
            other.execute("ROLLBACK")
        assert await state.jobs.jobs() == []
        await enqueue(state, "t/1")


async def test_the_ledger_forgets_no_day_of_a_month_that_a_budget_counts(tmp_path: Path) -> None:
    async with open_state(tmp_path / "s.db", clock=lambda: NOW_S) as state:
        await enqueue(state, "x")
        lease = await state.jobs.lease(A, kinds=[FILL], lease_s=30)
        assert lease is not None
        await state.jobs.complete(lease, work=Work(tokens=7))
        assert await state.ledger.prune(before_day=int(NOW_S // 86400) + 1) == 1
        assert {line.spent for line in await state.budgets.lines() if line.period is Period.MONTH} == {7}


async def test_a_clock_set_back_over_midnight_spends_no_day_twice(tmp_path: Path) -> None:
    now_s = NOW_S
    async with open_state(tmp_path / "s.db", clock=lambda: now_s) as state:
        spent = []
        for step_s in (0.0, 86400.0, -86400.0):
            now_s += step_s
            await enqueue(state, "x")
            lease = await state.jobs.lease(A, kinds=[FILL], lease_s=30)
            assert lease is not None
            await state.jobs.complete(lease, work=Work(tokens=5))
            lines = await balanced(state, now_s=now_s)
            spent.append({line.spent for line in lines.values() if line.period is Period.DAY})
        assert spent == [{5}, {5}, {10}]
