"""What stored answers cost to look up: near ones in the index, equal ones in the book, and what all of them take up.

Questions are random unit vectors in clusters of some twenty, so that each has neighbours that it must be told from; a
look-up asks for one of them with noise added (cosine about 0.96), and is right when the nearest by an exact comparison
is the first that it names. Twice, with all answers in one scope and with a hundred in each. What is measured is
measured in a process that was just started: it opens what another one has saved.

    python benchmarks/answer_book.py [--answers 50000] [--parts one,many,sqlite,redis]

Redis needs `redis-server`. A million answers take half an hour, 4 GB of memory and 5 GB of disk. The last line is one
JSON object; a latency is the median of the rounds and their extremes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nightfill.answers.embed import DIMENSIONS
from nightfill.answers.index import NearIndex
from nightfill.bench.machine import commit, this_machine
from nightfill.contexts.context import Tenant
from nightfill.state.answers import Answer, AnswerBounds, AnswerKey, AnswerNote, AnswerScope, Origin
from nightfill.state.redis import open_redis_state
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nightfill.answers.embed import Vectors
    from nightfill.state.answers import AnswerBook

ROUNDS: Final = 5
LOOKUPS: Final = 1000
"""Of a round."""
ALIKE: Final = 20
BATCH: Final = 20_000
TOGETHER: Final = 64
IN_A_SCOPE: Final = 100
BODY_BYTES: Final = 900
"""Of a reply of some 150 words."""


def key_of(number: int) -> AnswerKey:
    return AnswerKey(number.to_bytes(8, "big").rjust(32, b"k"))


def scope_of(number: int) -> AnswerScope:
    return AnswerScope((number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "little").ljust(32, b"s"))


def unit(vectors: Vectors) -> Vectors:
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def questions(answers: int) -> Iterator[tuple[range, Vectors]]:
    """Numbers and vectors, a batch at a time; the same ones each time."""
    rng = np.random.default_rng(7)
    centres = unit(rng.standard_normal((max(1, answers // ALIKE), DIMENSIONS), dtype=np.float32))
    for begin in range(0, answers, BATCH):
        some = range(begin, min(begin + BATCH, answers))
        noise = rng.standard_normal((len(some), DIMENSIONS), dtype=np.float32) * (0.6 / DIMENSIONS**0.5)
        yield some, unit(centres[rng.integers(0, len(centres), len(some))] + noise)


def asked(answers: int, count: int) -> tuple[list[int], Vectors]:
    """Some of the questions in other words, and which."""
    rng = np.random.default_rng(11)
    numbers = sorted(rng.integers(0, answers, count).tolist())
    rows = [vectors[[n - some.start for n in numbers if n in some]] for some, vectors in questions(answers)]
    noise = rng.standard_normal((count, DIMENSIONS), dtype=np.float32) * (0.3 / DIMENSIONS**0.5)
    return numbers, unit(np.concatenate(rows) + noise)


def nearest(answers: int, vectors: Vectors, scope_size: int, numbers: Sequence[int]) -> list[int]:
    """By comparison with all of the same scope."""
    best = np.full(len(vectors), -2.0, np.float32)
    where = np.zeros(len(vectors), np.int64)
    scopes = np.array(numbers) // scope_size
    for some, stored in questions(answers):
        cosines = vectors @ stored.T
        cosines[scopes[:, None] != np.arange(some.start, some.stop)[None, :] // scope_size] = -2
        row = cosines.argmax(axis=1)
        value = cosines[np.arange(len(vectors)), row]
        where = np.where(value > best, row + some.start, where)
        best = np.maximum(best, value)
    return [int(n) for n in where]


def spread(rounds: Sequence[float]) -> dict[str, float]:
    values = {"median": statistics.median(rounds), "min": min(rounds), "max": max(rounds)}
    return {name: round(value, 7) for name, value in values.items()}


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def memory_bytes() -> dict[str, int]:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"rss": "VmRSS", "anonymous": "RssAnon", "mapped_files": "RssFile"}
    return {short: int(fields[name].split()[0]) * 1024 for short, name in names.items()}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def build_index(folder: Path, answers: int, scope_size: int) -> dict[str, Any]:
    began_s, cpu_s = time.perf_counter(), time.process_time()
    index = NearIndex(folder, identity="random", capacity=answers)
    for some, vectors in questions(answers):
        notes = [AnswerNote(serial=n + 1, key=key_of(n), scope=scope_of(n // scope_size), question="?") for n in some]
        index.add(notes, vectors)
        print(f"{some.stop} of {answers} in {time.perf_counter() - began_s:.0f} s", file=sys.stderr, flush=True)
    saving_s = time.perf_counter()
    index.save()
    return {
        "build_s": round(time.perf_counter() - began_s, 1),
        "build_cpu_s": round(time.process_time() - cpu_s, 1),
        "save_s": round(time.perf_counter() - saving_s, 2),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def measure_index(folder: Path, answers: int, scope_size: int) -> dict[str, Any]:
    """In a process that was just started: its memory is the index's alone, but for the interpreter's 60 MB."""
    numbers, vectors = asked(answers, LOOKUPS)
    before = memory_bytes()
    began_s, cpu_s = time.perf_counter(), time.process_time()
    index = NearIndex(folder, identity="random", capacity=answers)
    index.nearest(scope_of(numbers[0] // scope_size), vectors[0], 4)
    ready_s, ready_cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    assert len(index) == answers
    p50, p99, cpu_p50, cpu_p99 = [], [], [], []
    found: list[AnswerKey] = []
    for _ in range(ROUNDS):
        wall, cpu, found = [], [], []
        for number, vector in zip(numbers, vectors, strict=True):
            scope = scope_of(number // scope_size)
            wall_s, cpu_s = time.perf_counter(), time.thread_time()
            near = index.nearest(scope, vector, 4)
            cpu.append(time.thread_time() - cpu_s)
            wall.append(time.perf_counter() - wall_s)
            found.append(near[0].key)
        p50.append(percentile(wall, 0.5))
        p99.append(percentile(wall, 0.99))
        cpu_p50.append(percentile(cpu, 0.5))
        cpu_p99.append(percentile(cpu, 0.99))
    after = memory_bytes()
    some = slice(0, 200)
    truth = nearest(answers, vectors[some], scope_size, numbers[some])
    right = sum(key == key_of(n) for key, n in zip(found[some], truth, strict=True))
    return {
        "ready_s": round(ready_s, 2),
        "ready_cpu_s": round(ready_cpu_s, 2),
        "lookup_p50_s": spread(p50),
        "lookup_p99_s": spread(p99),
        "lookup_cpu_p50_s": spread(cpu_p50),
        "lookup_cpu_p99_s": spread(cpu_p99),
        "recall_at_1": right / len(truth),
        "memory_bytes": {name: after[name] - before[name] for name in after},
        "files_bytes": size_of(folder),
    }


def index_part(folder: Path, answers: int, scope_size: int) -> dict[str, Any]:
    def apart(step: str) -> dict[str, Any]:
        words = [sys.executable, __file__, "--answers", str(answers), "--step", step]
        words += ["--folder", str(folder), "--scope-size", str(scope_size)]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return {"scopes": -(-answers // scope_size), "answers_in_a_scope": scope_size} | apart("build") | apart("measure")


async def fill_book(book: AnswerBook, answers: int) -> float:
    """Answers a second."""

    def answer(number: int) -> Answer:
        return Answer(
            key=key_of(number),
            scope=scope_of(number // IN_A_SCOPE),
            tenant=Tenant(f"tenant-{number % 10}"),
            context=None,
            fingerprint=None,
            model="m",
            question=f"What does paragraph {number} say about the matter at hand?",
            body=b"x" * BODY_BYTES,
            origin=Origin.LIVE,
            at_s=0,
            ttl_s=1e6,
        )

    began_s = time.perf_counter()
    for begin in range(0, answers, TOGETHER):
        await asyncio.gather(*(book.put(answer(n)) for n in range(begin, min(begin + TOGETHER, answers))))
        if begin % (TOGETHER * 1000) == 0:
            print(f"{begin} of {answers} put", file=sys.stderr, flush=True)
    return answers / (time.perf_counter() - began_s)


async def gets(book: AnswerBook, key: Callable[[], AnswerKey], *, hit: bool) -> dict[str, Any]:
    p50, p99, cpus = [], [], []
    for _ in range(ROUNDS):
        wall = []
        cpu_s = time.process_time()
        for _ in range(LOOKUPS):
            wanted = key()
            began_s = time.perf_counter()
            found = await book.get(wanted)
            wall.append(time.perf_counter() - began_s)
            assert (found is not None) == hit
        cpus.append((time.process_time() - cpu_s) / LOOKUPS)
        p50.append(percentile(wall, 0.5))
        p99.append(percentile(wall, 0.99))
    return {"p50_s": spread(p50), "p99_s": spread(p99), "cpu_s": spread(cpus)}


async def book_part(book: AnswerBook, answers: int) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "puts_a_second": round(await fill_book(book, answers)),
        "miss": await gets(book, lambda: AnswerKey(rng.bytes(32)), hit=False),
        "hit": await gets(book, lambda: key_of(int(rng.integers(answers))), hit=True),
    }


async def sqlite_part(folder: Path, answers: int) -> dict[str, Any]:
    async with open_state(folder / "state.db", bounds=AnswerBounds(answers=answers)) as state:
        found = await book_part(state.answers, answers)
    return {**found, "files_bytes": size_of(folder)}


async def redis_part(folder: Path, answers: int) -> dict[str, Any]:
    words = ["redis-server", "--port", "0", "--unixsocket", f"{folder}/s", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen([*words, "--dir", str(folder)], stdout=subprocess.DEVNULL)  # noqa: ASYNC220 - once
    try:
        async with asyncio.timeout(10):
            while not (folder / "s").exists():  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.02)
        async with open_redis_state(f"unix://{folder}/s", bounds=AnswerBounds(answers=answers)) as state:
            found = await book_part(state.answers, answers)
            info = (await state.server.call("INFO", "memory")).decode()
            used = next(line.split(":")[1] for line in info.splitlines() if line.startswith("used_memory:"))
            return {**found, "server_memory_bytes": int(used)}
    finally:
        server.terminate()
        server.wait(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=50_000)
    parser.add_argument("--parts", default="one,many,sqlite,redis")
    parser.add_argument("--step", choices=("build", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scope-size", type=int, default=IN_A_SCOPE, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step = build_index if given.step == "build" else measure_index
        print(json.dumps(step(given.folder, given.answers, given.scope_size)))
        return
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "one": lambda folder: index_part(folder, given.answers, given.answers),
        "many": lambda folder: index_part(folder, given.answers, IN_A_SCOPE),
        "sqlite": lambda folder: asyncio.run(sqlite_part(folder, given.answers)),
        "redis": lambda folder: asyncio.run(redis_part(folder, given.answers)),
    }
    result: dict[str, Any] = {
        "benchmark": "answer_book",
        "command": f"python benchmarks/answer_book.py --answers {given.answers}",
        "commit": commit(),
        "machine": asdict(this_machine()),
        "answers": given.answers,
        "load_before": os.getloadavg()[0],
    }
    for part in given.parts.split(","):
        with tempfile.TemporaryDirectory(prefix="nf-") as folder:
            print(f"{part}:", file=sys.stderr, flush=True)
            result[part] = parts[part](Path(folder))
    result["load_after"] = os.getloadavg()[0]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
