"""What one tick of a worker's planner costs, with a thousand contexts and with a million.

    python benchmarks/plan.py [--contexts 1000] [--contexts 100000] [--rounds 5] [--store sqlite]

All contexts are filled, but for 499 whose promise was broken before each round. A tick is measured three times: while
nothing is due (`idle`), when these 499 are (`due`: each is read, ranked, its budgets looked at, a job queued, the next
look set), and when it goes on with its walk through all contexts, as after a worker's start (`walk`: 500 are read).
`survey` is what it takes besides while a price is sought for a bounded budget and none holds: 5,000 contexts, or all
where there are fewer. The contexts are written past the books, by one statement or in large batches.

The last line is one JSON object. `stores` has for each store and number of contexts `bytes_per_context`, with one fill,
but for its text, its tokens and its uses, and for each kind of tick the medians `ms` and `cpu_ms` with their spread;
CPU seconds are those of the process and of the Redis server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
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

from _engine import ENGINE, SIGNATURE
from nightfill.bench.machine import commit, this_machine
from nightfill.config import PriceSettings
from nightfill.contexts.context import FillKey, FillState, Fingerprint, Form, Tenant
from nightfill.sleep.bill import Bill
from nightfill.sleep.planner import AT_ONCE, Planner
from nightfill.sleep.survey import Survey
from nightfill.state.budgets import BudgetRules
from nightfill.state.envelope import Envelopes
from nightfill.state.jobs import QueueRules
from nightfill.state.redis import open_redis_state
from nightfill.state.seal import NoSeal
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from nightfill.sleep.planner import State
    from nightfill.state.redis import RedisState

NAME: Final = "plan"
TENANTS: Final = 100
USERS: Final = 10_000
RULES: Final = QueueRules(budgets=BudgetRules(user_day=1 << 40, tenant_day=1 << 45, all_day=1 << 50))
DAY_S: Final = 86400.0
TOKENS: Final = 8192
BATCH: Final = 1000
CHANGED: Final = AT_ONCE - 1
"""With as many as one tick looks at, it would leave budgets alone until it has seen them all."""


def key_of(i: int) -> FillKey:
    return FillKey(
        tenant=Tenant(f"t{i % TENANTS}"), fingerprint=Fingerprint(f"{i:064x}"), form=Form.CHAT, signature=SIGNATURE
    )


def _source(owner: str) -> bytes:
    return Envelopes(NoSeal()).wrap(owner, b'{"type":"text"}')


@asynccontextmanager
async def sqlite_arm(contexts: int) -> AsyncIterator[tuple[State, float, Callable[[], float]]]:
    with tempfile.TemporaryDirectory(prefix="nightfill-plan-") as folder:
        path = Path(folder) / "state.db"
        async with open_state(path):
            pass
        connection = sqlite3.connect(path)
        with contextlib.closing(connection):
            connection.create_function("wrapped", 1, _source)
            before = _pages(connection)
            for statement in _ROWS:
                connection.execute(statement, {"contexts": contexts, "now_s": time.time()})
            connection.commit()
            size = (_pages(connection) - before) / contexts
        async with open_state(path, rules=RULES) as state:
            yield state, size, time.process_time


_NUMBERS: Final = "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :contexts - 1)"
_WHICH: Final = f"printf('t%d', i % {TENANTS}), printf('%064x', i)"
_ROWS: Final = (
    f"{_NUMBERS} INSERT INTO versions SELECT {_WHICH}, x'', 0, :now_s FROM n",  # noqa: S608
    f"""{_NUMBERS} INSERT INTO contexts (tenant, current, name, source, forms, pinned, created_at_s, updated_at_s,
            checked_at_s, user, watched, look_s)
        SELECT {_WHICH}, printf('context-%d', i), wrapped(printf('t%d/context-%d', i % {TENANTS}, i)), 'chat', 0,
            :now_s, :now_s, :now_s, printf('u%d', i % {USERS}), 0, :now_s + 86400 + i FROM n""",  # noqa: S608
    f"""{_NUMBERS} INSERT INTO fills (tenant, fingerprint, form, signature, state, stored_tokens, filled_at_s,
            fill_seconds, reason, total_tokens)
        SELECT {_WHICH}, 'chat', '{SIGNATURE}', 'ready', {TOKENS}, :now_s, 1.0, '', {TOKENS} FROM n""",  # noqa: S608
)


def _pages(connection: sqlite3.Connection) -> int:
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    size: int = connection.execute("PRAGMA page_size").fetchone()[0]
    return pages * size


@asynccontextmanager
async def redis_arm(contexts: int) -> AsyncIterator[tuple[State, float, Callable[[], float]]]:
    """A server of its own that keeps nothing on disk."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    assert program, "this arm needs redis-server or valkey-server"
    with tempfile.TemporaryDirectory(prefix="nf-") as folder:
        command = [program, "--port", "0", "--unixsocket", f"{folder}/s", "--save", "", "--appendonly", "no"]
        server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(20):
                while not Path(folder, "s").exists():  # noqa: ASYNC110, ASYNC240 - nobody tells
                    await asyncio.sleep(0.05)
            async with open_redis_state(f"unix://{folder}/s", rules=RULES, timeout_s=60.0) as state:
                before = await _memory(state)
                for start in range(0, contexts, BATCH):
                    await _put(state, range(start, min(start + BATCH, contexts)))
                size = (await _memory(state) - before) / contexts
                yield state, size, lambda: time.process_time() + _cpu_s(server.pid)
        finally:
            server.kill()
            await server.wait()


async def _put(state: RedisState, some: range) -> None:
    """As `book.lua` and `agenda.lua` have them."""
    root, now_s, pack, call = "{nightfill}", time.time(), msgspec.msgpack.encode, state.server.call
    rows: dict[str, list[Any]] = {}
    for i in some:
        key, name = key_of(i), f"context-{i}"
        field = f"{key.fingerprint}/{key.form}/{key.signature}"
        user = f"u{i % USERS}"
        record = (
            name,
            key.tenant,
            base64.b64encode(_source(f"{key.tenant}/{name}")).decode(),
            "chat",
            False,
            False,
            key.fingerprint,
            0,
            now_s,
            now_s,
            now_s,
            user,
            "{}",
            "",
        )
        fill = ("ready", TOKENS, now_s, 1.0, "", f"{i:064x}", TOKENS)
        rows.setdefault(f"contexts:{key.tenant}", []).extend((name, pack(record)))
        rows.setdefault(f"versions:{key.tenant}", []).extend((key.fingerprint, pack((1, (field,), (name,)))))
        rows.setdefault(f"fills:{key.tenant}", []).extend((field, pack(fill)))
    await asyncio.gather(*(call("HSET", f"{root}:{name}", *words) for name, words in rows.items()))
    contents = [(f"{root}:content:{key_of(i).tenant}\0{key_of(i).fingerprint}", b"") for i in some]
    await call("MSET", *(word for pair in contents for word in pair))
    places = [(repr(now_s + DAY_S + i), f"{key_of(i).tenant}\0context-{i}") for i in some]
    await call("ZADD", f"{root}:agenda", *(word for pair in places for word in pair))
    await call("SADD", f"{root}:tenants", *{key_of(i).tenant for i in some})


async def _memory(state: RedisState) -> int:
    text = (await state.server.call("INFO", "memory")).decode()
    return int(text.split("used_memory:", 1)[1].split("\r\n", 1)[0])


def _cpu_s(pid: int) -> float:
    spent = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(spent[11]) + int(spent[12])) / os.sysconf("SC_CLK_TCK")


ARMS: Final[dict[str, Callable[[int], AbstractAsyncContextManager[tuple[State, float, Callable[[], float]]]]]] = {
    "redis": redis_arm,
    "sqlite": sqlite_arm,
}
"""A state with so many contexts, its bytes for each, and the CPU seconds spent so far."""


async def measure(store: str, contexts: int, rounds: int) -> dict[str, Any]:
    print(f"{store}: {contexts} contexts", file=sys.stderr, flush=True)
    picked = random.Random(contexts)
    told: dict[str, list[tuple[float, float]]] = {"idle": [], "due": [], "walk": [], "survey": []}
    async with ARMS[store](contexts) as (state, size, cpu_s):
        bill = Bill(state, prices=PriceSettings(), stop_after_s=7 * DAY_S)
        planner = Planner(state, clock=time.time, default_ttl_s=7 * DAY_S, bill=bill)

        async def tick(kind: str, found: int) -> None:
            began = time.perf_counter(), cpu_s()
            lines = await planner.tick([ENGINE])
            told[kind].append((1e3 * (time.perf_counter() - began[0]), 1e3 * (cpu_s() - began[1])))
            assert len(lines) >= found, f"{len(lines)} of {found}"

        for _ in range(min(rounds, contexts // AT_ONCE)):
            await tick("walk", CHANGED)
        planner._place = None  # as at the end of the walk, which takes its time
        for _ in range(rounds):
            await tick("idle", 0)
            some = picked.sample(range(contexts), CHANGED)
            marked = (state.book.mark_fill(key_of(i), state=FillState.STALE, reason="a broken promise") for i in some)
            assert all(await asyncio.gather(*marked))
            await tick("due", len(some))
        for _ in range(rounds):
            began = time.perf_counter(), cpu_s()
            price, _ = await Survey(state).go_on(lambda found: planner._lines(found, [ENGINE], []), now_s=time.time())
            told["survey"].append((1e3 * (time.perf_counter() - began[0]), 1e3 * (cpu_s() - began[1])))
            assert price is not None
    return {"contexts": contexts, "bytes_per_context": round(size), **{kind: _sums(told[kind]) for kind in told}}


def _sums(rounds: list[tuple[float, float]]) -> dict[str, list[float] | float]:
    found: dict[str, list[float] | float] = {}
    for name, values in zip(("ms", "cpu_ms"), zip(*rounds, strict=True), strict=True):
        found[name] = round(statistics.median(values), 2)
        found[f"{name}_spread"] = [round(min(values), 2), round(max(values), 2)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, action="append", help="(default: 1000 and 100000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", action="append", choices=sorted(ARMS), help="all if none is given")
    options = parser.parse_args()
    sizes = options.contexts or [1000, 100_000]
    stores = {
        store: [asyncio.run(measure(store, contexts, options.rounds)) for contexts in sizes]
        for store in options.store or sorted(ARMS)
    }
    setting = {"command": "python " + " ".join(sys.argv), "commit": commit(), "machine": asdict(this_machine())}
    print(msgspec.json.encode({"name": NAME, **setting, "stores": stores}).decode())


if __name__ == "__main__":
    main()
