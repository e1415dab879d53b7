"""The measurement of `queue.py`, which says what it is."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import uvloop

from nightfill.bench.machine import commit, this_machine
from nightfill.contexts.context import ContextName, Fingerprint, Form, Tenant, Text, TextSource
from nightfill.state.budgets import BudgetRules
from nightfill.state.jobs import NO_WORK, JobKind, QueueRules, Work, WorkerId
from nightfill.state.redis import open_redis_state
from nightfill.state.sqlite import open_state
from nightfill.state.sqlite.sums import SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from nightfill.state.jobs import JobQueue
    from nightfill.state.redis import RedisState

NAME: Final = "queue"
TENANTS: Final = 100
USERS: Final = 10_000
SIGNATURES: Final = 2
RULES: Final = QueueRules(budgets=BudgetRules(user_day=1 << 40, tenant_day=1 << 45, all_day=1 << 50))
WORKER: Final = WorkerId("benchmark")
WORK: Final = Work(tokens=4000, seconds=1.0, machine="spot")


@asynccontextmanager
async def sqlite_arm(jobs: int) -> AsyncIterator[tuple[JobQueue, dict[str, float]]]:
    """A state file with so many jobs. They are inserted by one statement, past the queue: its triggers count them."""
    with tempfile.TemporaryDirectory(prefix="nightfill-queue-") as folder:
        path = Path(folder) / "state.db"
        async with open_state(path):
            pass
        connection = sqlite3.connect(path)
        sizes = {}
        with contextlib.closing(connection):
            for row, statements in (("job", (_JOBS,)), ("context", (_VERSIONS, _CONTEXTS))):
                before = _bytes(connection)
                for statement in statements:
                    connection.execute(statement, {"jobs": jobs, "now_s": time.time()})
                connection.commit()
                sizes[f"bytes_per_{row}"] = (_bytes(connection) - before) / jobs
        async with open_state(path, rules=RULES) as state:
            yield state.jobs, sizes


@asynccontextmanager
async def redis_arm(jobs: int) -> AsyncIterator[tuple[JobQueue, dict[str, float]]]:
    """A server of its own that keeps nothing on disk. The jobs and contexts come by the front door."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    assert program, "this arm needs redis-server or valkey-server"
    with tempfile.TemporaryDirectory(prefix="nf-") as folder:
        command = [program, "--port", "0", "--unixsocket", f"{folder}/s", "--save", "", "--appendonly", "no"]
        server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(20):
                while not Path(folder, "s").exists():  # noqa: ASYNC110, ASYNC240 - nobody tells
                    await asyncio.sleep(0.05)
            async with open_redis_state(f"unix://{folder}/s", rules=RULES) as state:
                contexts = min(jobs, 20_000)
                sizes = {
                    "bytes_per_context": await _grown(state, contexts, lambda i: _put_context(state, i)),
                    "bytes_per_job": await _grown(state, jobs, lambda i: _put_job(state, i)),
                }
                yield state.jobs, sizes
        finally:
            server.kill()
            await server.wait()


async def _grown(state: RedisState, number: int, put: Callable[[int], Awaitable[object]]) -> float:
    """Bytes of memory that the server needs for each of so many."""
    before = await _memory(state)
    for start in range(0, number, 1000):
        await asyncio.gather(*(put(i) for i in range(start, min(start + 1000, number))))
    return (await _memory(state) - before) / number


async def _memory(state: RedisState) -> int:
    text = (await state.server.call("INFO", "memory")).decode()
    return int(text.split("used_memory:", 1)[1].split("\r\n", 1)[0])


async def _put_context(state: RedisState, i: int) -> None:
    await state.book.put(
        tenant=Tenant(f"t{i % TENANTS}"),
        name=ContextName(f"context-{i}"),
        source=TextSource(),
        content=Text(""),
        fingerprint=Fingerprint(f"{i:064x}"),
        forms=[Form.CHAT],
        user=f"u{i % USERS}",
    )


async def _put_job(state: RedisState, i: int) -> None:
    await state.jobs.enqueue(
        kind=JobKind.FILL,
        target=f"t{i % TENANTS}/{i:064x}/chat/{signature(i % SIGNATURES)}",
        tenant=f"t{i % TENANTS}",
        label=f"context-{i}",
        priority=random.random(),
        total_tokens=4096 + i % 196608,
        user=f"u{i % USERS}",
        needs=signature(i % SIGNATURES),
        reserve_tokens=4096,
    )


_NUMBERS: Final = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :jobs)"
_JOBS: Final = f"""{_NUMBERS} INSERT INTO jobs (kind, target, tenant, label, priority, state, total_tokens,
        created_at_s, updated_at_s, user, needs, asked_tokens, reserved_tokens, size)
    SELECT 'fill', printf('t%d/%064x/chat/%064x', i % {TENANTS}, i, i % {SIGNATURES}), printf('t%d', i % {TENANTS}),
        printf('context-%d', i), abs(random()) / 9.3e18, 'queued', 4096 + i % 196608, :now_s, :now_s,
        printf('u%d', i % {USERS}), printf('%064x', i % {SIGNATURES}), 4096, 4096,
        {SIZE.replace("total_tokens", "4096 + i % 196608")} FROM n"""  # noqa: S608
_VERSIONS: Final = f"""{_NUMBERS} INSERT INTO versions
    SELECT printf('t%d', i % {TENANTS}), printf('%064x', i), x'', 0, :now_s FROM n"""  # noqa: S608
_CONTEXTS: Final = f"""{_NUMBERS} INSERT INTO contexts (tenant, name, source, forms, pinned, ttl_s, current,
        created_at_s, updated_at_s, checked_at_s, user)
    SELECT printf('t%d', i % {TENANTS}), printf('context-%d', i), CAST(printf('%32s{{"type":"text"}}', '') AS BLOB),
        'chat', 0, NULL, printf('%064x', i), :now_s, :now_s, :now_s, printf('u%d', i % {USERS}) FROM n"""  # noqa: S608


def _bytes(connection: sqlite3.Connection) -> int:
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    size: int = connection.execute("PRAGMA page_size").fetchone()[0]
    return pages * size


ARMS: Final[dict[str, Callable[[int], AbstractAsyncContextManager[tuple[JobQueue, dict[str, float]]]]]] = {
    "redis": redis_arm,
    "sqlite": sqlite_arm,
}
"""A queue with so many jobs that need one of `signature(n)`, and bytes per job and context, by name of the store."""


def signature(n: int) -> str:
    return f"{n:064x}"


async def cycles_per_s(queue: JobQueue, cycles: int, clients: int, work: Work = NO_WORK) -> tuple[float, float]:
    """Of one core, and of a second that it computes."""
    needs = [signature(n) for n in range(SIGNATURES)]

    async def client() -> None:
        for _ in range(cycles // clients):
            lease = await queue.lease(WORKER, kinds=[JobKind.FILL], lease_s=60.0, needs=needs, max_tokens=1 << 17)
            assert lease is not None
            await queue.complete(lease, work=work)

    started_s, cpu_s = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())
    done = cycles // clients * clients
    passed_s, computed_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    return done / max(passed_s, computed_s), done / computed_s


async def poll_s(queue: JobQueue) -> float:
    """A look that finds nothing."""
    started_s = time.perf_counter()
    for _ in range(100):
        assert await queue.lease(WORKER, kinds=[JobKind.VERIFY], lease_s=60.0, needs=[signature(0)]) is None
    return (time.perf_counter() - started_s) / 100


async def measure(store: str, options: argparse.Namespace) -> dict[str, Any]:
    print(f"{store}: {options.jobs} jobs", file=sys.stderr, flush=True)
    async with ARMS[store](options.jobs) as (queue, sizes):
        present = (await queue.depth()).due
        await cycles_per_s(queue, options.cycles // 4, options.clients)
        figures: dict[str, list[float]] = {}
        for name, work in (("cycles", NO_WORK), ("charged_cycles", WORK)):
            rounds = [await cycles_per_s(queue, options.cycles, options.clients, work) for _ in range(options.rounds)]
            for per, told in zip(("s", "cpu_s"), zip(*rounds, strict=True), strict=True):
                figures[f"{name}_per_{per}"] = list(told)
                print(f"{store}: {name}_per_{per} {', '.join(f'{rate:.0f}' for rate in told)}", file=sys.stderr)
        return {
            **figures,
            "jobs_present": present,
            "poll_s": await poll_s(queue),
            **sizes,
        }


def main(about: str) -> None:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="that wait meanwhile (default: 1000000)")
    parser.add_argument("--cycles", type=int, default=20_000, help="in each round (default: 20000)")
    parser.add_argument("--clients", type=int, default=32, help="at a time (default: 32)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", action="append", choices=sorted(ARMS), help="all if none is given")
    options = parser.parse_args()
    # The loop that `nightfill` itself runs on.
    stores = {store: uvloop.run(measure(store, options)) for store in options.store or sorted(ARMS)}
    figures = {f"{store}_cycles_per_s": statistics.median(told["cycles_per_s"]) for store, told in stores.items()}
    present = min(told["jobs_present"] for told in stores.values())
    setting = {"command": "python " + " ".join(sys.argv), "commit": commit(), "machine": asdict(this_machine())}
    print(msgspec.json.encode({"name": NAME, **setting, **figures, "jobs_present": present, "stores": stores}).decode())
