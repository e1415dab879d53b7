"""Everything is killed at random while it works, again and again: nothing is lost, nothing is done twice at once."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import re
import signal
import sqlite3
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest

from nightfill.config import KvSettings, Settings
from nightfill.kv import open_store, salt_of
from nightfill.kv.key import spans
from nightfill.state.sqlite import open_state
from serving import distance, eventually, marked, source_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving import Serve

pytestmark = pytest.mark.e2e

KILLS: Final = 50
LIVES: Final = 6
"""Of the server itself: so many times it is started, and all but the last time killed."""
LONGEST_GAP_S: Final = 4.0
SAME: Final = 0.3
"""Nats; see `serving.distance`."""
SETTINGS: Final[dict[str, Any]] = {
    "sleep": {
        "max_slice_s": 0.2,
        "retry_base_s": "100ms",
        "retry_cap_s": "1s",
        # An engine that is killed fails its job; so many kills in so short a time are ours alone.
        "max_failures": 1000,
        "plan_every_s": 0.3,
    }
}
AUDIT: Final = """
    CREATE TABLE audit (at_s REAL, job INTEGER, old_state TEXT, old_worker TEXT, old_lost INTEGER, old_kept INTEGER,
        new_state TEXT, new_worker TEXT, new_lost INTEGER, new_kept INTEGER, fence INTEGER);
    CREATE TRIGGER audit_jobs AFTER UPDATE ON jobs BEGIN
        INSERT INTO audit VALUES ((julianday('now') - 2440587.5) * 86400, new.id, old.state, old.worker, old.lost,
            old.kept_tokens, new.state, new.worker, new.lost, new.kept_tokens, new.attempts);
    END;
"""
"""A history of all leases, written by the very transactions that change them."""
CLOCK_S: Final = 0.05
"""Between the clocks of Python and SQLite, which counts in milliseconds."""


@dataclass
class Killer:
    """Kills what a server has started, and remembers when."""

    serve: Serve
    rng: random.Random
    kills: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    killed_at_s: dict[int, float] = field(default_factory=dict)
    gone_at_s: list[float] = field(default_factory=list)
    """When it was seen that no process of the server's last life was left."""

    @property
    def count(self) -> int:
        return sum(self.kills.values())

    def strike(self) -> None:
        """Kill one of worker, filling engine and serving engine, or all of them at once, as far as they run."""
        victims = self.rng.choice(
            (("worker",), ("fill",), ("fill",), ("live",), ("worker", "fill"), ("worker", "live"))
        )
        for name in victims:
            pid = {"worker": self.serve.worker_pid, "fill": self.serve.fill_pid, "live": self.serve.live_pid}[name]
            if pid is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                now_s = time.time()
                os.kill(pid, signal.SIGKILL)
                self.killed_at_s[pid] = now_s
                self.kills[name] += 1

    def end_life(self) -> None:
        self.serve.kill()
        assert not marked(self.serve.mark)
        self.gone_at_s.append(time.time())
        self.kills["serve"] += 1


class Client:
    """Asks something short now and then, so that fills are frozen and thawed between the kills."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.statuses: dict[int, int] = defaultdict(int)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(0.7):
            with contextlib.suppress(OSError, http.client.HTTPException, KeyError, ValueError):
                self.statuses[self._serve.ask("Hello?", max_tokens=3, within_s=30).status] += 1


def watch_leases(serve: Serve) -> None:
    with contextlib.closing(sqlite3.connect(serve.data_dir / "state.db", timeout=10)) as connection:
        connection.executescript(AUDIT)


def history(serve: Serve) -> list[sqlite3.Row]:
    with contextlib.closing(sqlite3.connect(serve.data_dir / "state.db", timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("SELECT rowid, * FROM audit ORDER BY rowid").fetchall()


def assert_no_job_was_taken_from_a_living_worker(rows: list[sqlite3.Row], killer: Killer) -> int:
    """A lease ends by its holder's own word, or, and then it counts as lost, after its holder's death. How many did."""
    first_s: dict[str, float] = {}
    taken = 0
    for row in rows:
        if row["new_worker"]:
            first_s.setdefault(row["new_worker"], row["at_s"])
        if row["old_worker"] and row["new_worker"] not in (None, row["old_worker"]):
            assert row["new_lost"] == row["old_lost"] + 1, dict(row)
        if row["old_state"] == "leased" and row["new_lost"] > row["old_lost"]:
            taken += 1
            holder, at_s = row["old_worker"], row["at_s"]
            pid = int(holder.rsplit(":", 2)[1])
            killed_s = killer.killed_at_s.get(pid)
            dead = killed_s is not None and first_s[holder] - CLOCK_S <= killed_s <= at_s + CLOCK_S
            ended = any(first_s[holder] - CLOCK_S <= gone_s <= at_s + CLOCK_S for gone_s in killer.gone_at_s)
            assert dead or ended, f"taken from a living worker: {dict(row)}"
    return taken


def assert_resumed(rows: list[sqlite3.Row], serve: Serve) -> int:
    """The last attempt at a job computed no token that was stored before it. How many jobs were resumed."""
    kept: dict[int, int] = defaultdict(int)
    resumed = 0
    for row in rows:
        if row["new_state"] == "leased" and (row["old_state"] != "leased" or row["old_worker"] != row["new_worker"]):
            kept[row["job"]] = row["old_kept"]
    for line in serve.logged(r"job (\d+ \(c\d+\): ready, \d+ tokens, \d+ computed now)"):
        job, tokens, computed = map(int, re.findall(r"(?<!\w)\d+", line))
        before = kept[job]
        assert computed <= tokens - before, f"job {job}: {computed} of {tokens} computed, {before} were kept"
        resumed += before > 0
    return resumed


async def assert_all_that_the_book_says_is_stored(data_dir: Path) -> int:
    """Each block of each fill is there and verifies. How many there are."""
    store = open_store(KvSettings(tiers=Settings().kv.tiers), data_dir=data_dir)
    checked = 0
    try:
        async with open_state(data_dir / "state.db") as state:
            for fill in await state.book.fills():
                assert fill.stored_tokens == len(fill.tokens)
                salt = salt_of(fill.key.tenant)
                for span in spans(fill.tokens, signature=fill.key.signature, salt=salt, block_tokens=256):
                    block = store.get(span.key, salt=salt)
                    assert block is not None, (fill.key, span)
                    assert (block.meta.start, block.meta.stop) == (span.start, span.stop)
                    checked += 1
        assert sum(tier.corrupt for tier in store.report().tiers) == 0
    finally:
        store.close()
    return checked


@pytest.mark.timeout(290)
async def test_after_50_kills_at_random_points_every_context_is_ready_and_right(
    new_serve: Callable[..., Serve],
) -> None:
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    print(f"seed {seed}")  # noqa: T201
    serve = new_serve(settings=SETTINGS).start()
    watch_leases(serve)
    killer = Killer(serve, rng)
    names: list[str] = []
    ready: set[str] = set()

    def put_another() -> None:
        name = f"c{len(names)}"
        serve.put(name, source_text(seed + len(names), functions=rng.randint(60, 110)))
        names.append(name)

    with Client(serve) as client:
        for life in range(1, LIVES + 1):
            while killer.count < KILLS * life / LIVES:
                ready |= {name for name in names if name not in ready and "ready" in serve.states(name)}
                while len(names) - len(ready) < 2:
                    put_another()
                await asyncio.sleep(LONGEST_GAP_S * rng.random() ** 3 + 0.005)
                killer.strike()
            if life < LIVES:
                killer.end_life()
                serve.start()
        serve.wait_ready(*names, within_s=120)
    print(f"{dict(killer.kills)}, {len(names)} contexts, answers {dict(client.statuses)}")  # noqa: T201
    assert killer.count >= KILLS
    assert set(client.statuses) <= {200, 503}, client.statuses
    assert client.statuses[200]
    assert not [job for job in serve.jobs() if job["state"] != "done"]

    eventually(lambda: serve.request("GET", "/readyz").status == 200, within_s=60, what="the serving engine is back")
    for name in names:
        (fill,) = serve.fills(name)
        filled = serve.ask(context=name, logprobs=True, top_logprobs=10)
        assert filled.layer == "fill", name
        assert filled.reused >= 0.95 * fill["tokens"], name
        cold = serve.ask(context=name, skip=("fill",), logprobs=True, top_logprobs=10)
        assert cold.layer == "cold"
        assert distance(filled, cold) < SAME, name
    assert serve.metric("nightfill_broken_promises_total") == 0
    serve.stop()

    rows = history(serve)
    assert assert_no_job_was_taken_from_a_living_worker(rows, killer) > 0
    # How many fills a kill met between two saves is chance; each that it met is checked.
    assert_resumed(rows, serve)
    assert await assert_all_that_the_book_says_is_stored(serve.data_dir) > 6 * len(names)
