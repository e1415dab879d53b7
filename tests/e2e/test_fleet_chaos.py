"""A night of spot machines: workers come and go, the state's server is restarted and cut off, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from fakes.balance import balanced
from fakes.cutting_proxy import CuttingProxy
from fakes.redis_server import RedisServer
from nightfill.state.jobs import JobState
from nightfill.state.redis import open_redis_state
from serving import eventually, marked, source_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from serving import Answer, Serve

pytestmark = pytest.mark.e2e

WORKERS: Final = 4
CONTEXTS: Final = 200
USERS: Final = 5
AT_MOST_S: Final = 540.0
BETWEEN_BLOWS_S: Final = (1.0, 4.0)
BETWEEN_CUTS_S: Final = (4.0, 8.0)


class Night:
    """Workers on one settings file, each with a data folder of its own, as if on hosts of their own."""

    def __init__(self, serve: Serve, folder: Path, rng: random.Random) -> None:
        self._serve = serve
        self._folder = folder
        self._rng = rng
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._log_from: dict[int, int] = {}
        self.killed = 0
        self.ended: list[int] = []
        """Exit statuses of those who were asked to end."""

    def keep(self) -> None:
        """Start whoever does not run."""
        for number in range(WORKERS):
            if number not in self._workers:
                log_path = self._folder / f"work-{number}.log"
                self._log_from[number] = log_path.stat().st_size if log_path.exists() else 0
                with log_path.open("ab") as log:
                    command = [*self._serve.command, "--data-dir", str(self._folder / f"host-{number}"), "work"]
                    self._workers[number] = subprocess.Popen(
                        command, env=self._serve.environment, stdin=subprocess.DEVNULL, stderr=log
                    )

    def strike(self) -> None:
        """Take one machine away, with notice or without."""
        number = self._rng.choice(sorted(self._workers))
        worker = self._workers.pop(number)
        assert worker.poll() is None, self.log(number)
        # One that has not begun yet cannot take a notice.
        if self._rng.random() < 0.5 or " begins" not in self.log(number):
            worker.kill()
            worker.wait(20)
            self.killed += 1
        else:
            worker.send_signal(signal.SIGTERM)
            self.ended.append(worker.wait(20))

    def end(self) -> None:
        eventually(
            lambda: all(" begins" in self.log(number) for number in self._workers), within_s=30, what="all have begun"
        )
        for worker in self._workers.values():
            worker.send_signal(signal.SIGTERM)
        for number in sorted(self._workers):
            self.ended.append(self._workers.pop(number).wait(20))

    def log(self, number: int) -> str:
        """What it has said since it was last started."""
        return (self._folder / f"work-{number}.log").read_bytes()[self._log_from[number] :].decode()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.kill()
            worker.wait(20)


class Weather:
    """A server of the state behind a proxy: it is restarted, cut off and hung, again and again, from a thread."""

    def __init__(self, rng: random.Random) -> None:
        # What it has acknowledged outlives it.
        self.server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
        self._rng = rng
        self._proxy = CuttingProxy(path=self.server.path)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self._proxy.__aenter__())
        self.url = self._proxy.url
        self.seen: Counter[str] = Counter()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def _call(self, act: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(act)

    def blow(self) -> None:
        """One trouble, from its beginning to its end."""
        kind = self._rng.choice(("restart", "cut", "away", "stall", "lost answers"))
        self.seen[kind] += 1
        match kind:
            case "restart":
                self.server.kill()
                time.sleep(self._rng.uniform(0.0, 1.5))
                self.server.start()
            case "cut":
                self._call(self._proxy.cut)
            case "away":
                self._call(lambda: self._proxy.cut(refuse=True))
                time.sleep(self._rng.uniform(0.5, 3.0))
            case "stall":
                self._call(self._proxy.stall)
                time.sleep(self._rng.uniform(0.5, 3.0))
            case "lost answers":
                for _ in range(3):
                    self._call(self._proxy.drop_answer)
        self._call(self._proxy.heal)

    def close(self) -> None:
        self._run(self._proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()
        self.server.close()


class Clients:
    """Somebody asks all the time, with a context and without, and keeps every answer."""

    def __init__(self, serve: Serve, rng: random.Random) -> None:
        self._serve = serve
        self._rng = rng
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.statuses: Counter[int | str] = Counter()
        self.layers: Counter[str] = Counter()

    def _run(self) -> None:
        while not self._stop.wait(0.15):
            context = self._rng.choice((None, *(f"c{self._rng.randrange(CONTEXTS)}" for _ in range(3))))
            try:
                answer: Answer = self._serve.ask(context=context, max_tokens=2, within_s=60)
            except OSError as exc:
                self.statuses[type(exc).__name__] += 1
            else:
                self.statuses[answer.status] += 1
                self.layers[answer.layer] += 1

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(90)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(20)


@pytest.fixture
def weather(rng: random.Random) -> Iterator[Weather]:
    weather = Weather(random.Random(rng.random()))
    yield weather
    weather.close()


def settings(weather: Weather, folder: Path) -> dict[str, Any]:
    return {
        "state": weather.url,
        "engines": [{"name": "local", "model": "demo:tiny", "threads": 1}],
        "kv": {"tiers": [{"kind": "disk", "path": str(folder / "kv"), "max_bytes": "4GB", "min_free_bytes": 0}]},
        "budgets": {"user_tokens_per_day": 1_000_000},
        "sleep": {
            "enabled": False,
            "lease_s": 2,
            "max_slice_tokens": 256,
            "retry_base_s": "100ms",
            "retry_cap_s": "1s",
            "max_failures": 1000,
            "plan_every_s": 0.5,
            "audit_share": 0,
            "grace_s": 5,
        },
    }


def put_contexts(serve: Serve) -> None:
    for number in range(CONTEXTS):
        serve.put(f"c{number}", source_text(1000 + number, functions=12), user=f"u{number % USERS}")


async def ready(url: str) -> int:
    async with open_redis_state(url) as state:
        return sum(fill.state == "ready" for fill in await state.book.fills())


@pytest.mark.timeout(AT_MOST_S + 60)
def test_nothing_is_lost_doubled_or_unpaid_in_a_night_of_spot_machines(
    new_serve: Callable[..., Serve], weather: Weather, tmp_path: Path, rng: random.Random
) -> None:
    serve = new_serve("gateway", settings=settings(weather, tmp_path)).start()
    put_contexts(serve)
    night = Night(serve, tmp_path, rng)
    done = threading.Event()

    def storm() -> None:
        while not done.wait(rng.uniform(*BETWEEN_CUTS_S)):
            weather.blow()

    trouble = threading.Thread(target=storm, daemon=True)
    began_s = time.monotonic()
    try:
        with Clients(serve, random.Random(21)) as clients:
            night.keep()
            trouble.start()
            filled = 0
            while filled < CONTEXTS and time.monotonic() - began_s < AT_MOST_S:
                time.sleep(rng.uniform(*BETWEEN_BLOWS_S))
                night.strike()
                night.keep()
                # Its own way to the server, past the proxy; the server itself may be away.
                with contextlib.suppress(Exception):
                    filled = asyncio.run(ready(weather.server.url))
            done.set()
            trouble.join(30)
            eventually(lambda: asyncio.run(ready(weather.server.url)) == CONTEXTS, within_s=60, what="all are ready")
            eventually(lambda: asyncio.run(unfinished(weather.server.url)) == 0, within_s=60, what="no job is left")
        night.end()
    finally:
        done.set()
        night.close()
    told = f"{night.killed} kills, {len(night.ended)} ends, {dict(weather.seen)}, {dict(clients.layers)}"
    sys.stderr.write(f"{told}, {time.monotonic() - began_s:.0f} s\n")
    assert night.killed > 0
    assert set(night.ended) == {0}, told
    assert set(clients.statuses) == {200}, f"{clients.statuses}, {told}"
    asyncio.run(assert_whole(weather.server.url, killed=night.killed))
    for number in rng.sample(range(CONTEXTS), 5):
        assert serve.ask(context=f"c{number}", max_tokens=1).layer == "fill"
    assert marked(serve.mark)
    serve.stop()


async def unfinished(url: str) -> int:
    async with open_redis_state(url) as state:
        return len(await state.jobs.jobs(states=(JobState.QUEUED, JobState.LEASED)))


async def assert_whole(url: str, *, killed: int) -> None:
    """No job lost, none done twice, and all that the ledger says is what the budgets have spent."""
    async with open_redis_state(url) as state:
        jobs = await state.jobs.jobs(limit=100_000)
        assert {job.state for job in jobs} <= {JobState.DONE, JobState.CANCELLED}
        completed = Counter(job.target for job in jobs if job.state is JobState.DONE)
        assert len(completed) == CONTEXTS
        assert set(completed.values()) == {1}, completed.most_common(3)
        now_s = time.time()
        lines = await balanced(state, now_s=now_s)
        assert all(line.reserved == 0 for line in lines.values())
        day = int(now_s // 86400)
        ledger = await state.ledger.lines(since_day=day - 1, until_day=day)
        fills = Counter[str]()
        for line in ledger:
            fills[line.context] += line.fills
        assert fills == {f"c{number}": 1 for number in range(CONTEXTS)}
        tokens = [len(fill.tokens) for fill in await state.book.fills()]
        # What a worker had stored and not told yet when it was killed is in nobody's bill.
        assert sum(line.background_tokens for line in ledger) >= sum(tokens) - killed * max(tokens)
