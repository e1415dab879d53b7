"""What stored answers cost those requests that they do not serve: a stub upstream, two gateways that differ in nothing
but `answers.mode`, and an open-loop load from another process.

*exact*: each request is a new question, so that each look-up misses; `off` against `exact`, without storing the replies
(`no-store`) and with it, and what that adds.
*near*: requests that have nothing to do with stored answers (they skip them) meet others on the same gateway that ask
new questions all the time; `exact` against `near`, where each of these is embedded, looked up among stored ones and
judged by the guard, and what that does to the p99 of the first.

Rounds alternate, and a figure is the median of the rounds' with the least and the most of them. On a machine that does
other things besides, look at the CPU time of the gateway's process: that does not depend on who else runs.

    python benchmarks/answer_layer.py [--rounds 12] [--seconds 4] [--rps 100] [--near-rps 5]

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import uvloop

from gateway import Connection, HttpEngine, cpu_s, percentile, serve_bare, stub
from nightfill.answers.embed import load_embedder
from nightfill.answers.guard import agree
from nightfill.answers.index import NearIndex
from nightfill.answers.neighbours import NearSearch, Parts
from nightfill.answers.question import Questions
from nightfill.bench.machine import commit, this_machine
from nightfill.config import AnswerSettings, ContextSettings, GatewaySettings
from nightfill.gateway import serving
from nightfill.gateway.stored import AnswerRoom
from nightfill.observe.metrics import Metrics
from nightfill.state.board import MmapLoadBoard
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from nightfill.engines.engine import Engine

STORED: Final = 500
"""Questions that are stored before the near rounds begin."""
TOPICS: Final = ("order", "invoice", "refund", "parcel", "account", "password", "warranty", "voucher", "address")
VERBS: Final = ("cancel", "change", "find", "track", "return", "extend", "check", "close", "open", "print")


def question(number: int) -> str:
    """A sentence of some ten words, another one for each number."""
    rng = random.Random(number)
    return f"How do I {rng.choice(VERBS)} the {rng.choice(TOPICS)} number {number} of {rng.choice(TOPICS)}s?"


def request(text: str, **members: Any) -> bytes:
    """A chat request of 0.7 KB."""
    said = {"model": "stub", "temperature": 0, **members}
    messages = [{"role": "system", "content": "x" * 500}, {"role": "user", "content": text}]
    body = json.dumps({**said, "messages": messages}, separators=(",", ":")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


OTHER: Final = request("What else is there?", nightfill={"skip": ["answer"]})


# --- the gateway


async def run_gateway(upstream_port: int, mode: str) -> None:
    """Serve a gateway with its real state; print its port."""
    sys.setswitchinterval(0.0005)  # as `nightfill serve` does
    engine = HttpEngine(f"http://127.0.0.1:{upstream_port}")
    with tempfile.TemporaryDirectory() as folder:
        state = open_state(Path(folder) / "state.db")
        board = MmapLoadBoard(Path(folder) / "load")

        def load() -> Parts:
            embedder = load_embedder()
            return Parts(embedder, NearIndex(Path(folder) / "near", identity=embedder.identity), agree)

        settings = AnswerSettings(mode=cast("Any", mode))
        search = NearSearch(
            state.answers,
            load,
            floor=settings.min_similarity,
            deadline_s=settings.near_timeout_s,
            needed=mode == "near",
        )
        room = AnswerRoom(
            settings=settings,
            answers=state.answers,
            questions=state.questions,
            keys=Questions(max_temperature=settings.max_temperature),
            neighbours=search,
        )
        try:
            async with (
                search,
                serving(
                    settings=GatewaySettings(port=0),
                    contexts=ContextSettings(),
                    engines=[cast("Engine", engine)],
                    book=state.book,
                    queue=state.jobs,
                    access=state.access,
                    board=board,
                    metrics=Metrics(),
                    answers=room,
                ) as server,
            ):
                if mode == "near":
                    await search.ready()
                print(server.port, flush=True)
                await asyncio.to_thread(sys.stdin.read)
        finally:
            await engine.upstream.aclose()
            board.close()
            await state.aclose()


# --- the load


async def run_load(port: int, *, rps: float, near_rps: float, seconds: float, first: int, stores: bool) -> None:
    """Open loop. Without `near_rps` each request is a new question; with it so many are, and the others skip answers.
    Replies to the questions may be stored if `stores`.

    Prints the latencies of the questions, or of the others, as JSON.
    """
    idle = [await Connection.open(port) for _ in range(8)]
    latencies: list[float] = []
    numbers = itertools.count(first)

    async def one(due: float, sent: bytes, *, counts: bool) -> None:
        connection = idle.pop() if idle else await Connection.open(port)
        took = await connection.ask(sent) - due
        if counts:
            latencies.append(took)
        idle.append(connection)

    for connection in list(idle):
        await connection.ask(OTHER)
    begin = time.perf_counter()
    plan = [(index / rps, None if near_rps else next(numbers)) for index in range(int(rps * seconds))]
    if near_rps:
        # Between the others, not together with them.
        plan += [((index + 0.37) / near_rps, next(numbers)) for index in range(int(near_rps * seconds))]
    async with asyncio.TaskGroup() as tasks:
        for after_s, number in sorted(plan, key=lambda row: row[0]):
            sent = OTHER if number is None else request(question(number), cache={"no-store": not stores})
            due = begin + after_s
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.create_task(one(due, sent, counts=number is None or not near_rps))
    for connection in idle:
        connection.writer.close()
    print(json.dumps(latencies))


# --- the benchmark


def child(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def port_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


class Load:
    """Runs loads one after the other; no two ask the same question."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(
        self, port: str, *, rps: float, near_rps: float = 0, seconds: float, stores: bool = True
    ) -> list[float]:
        first, self.asked = self.asked, self.asked + int(seconds * (near_rps or rps)) + 1
        given = (rps, near_rps, seconds, first, int(stores))
        arguments = ("--role", "load", port, *map(str, given))
        done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
        return list(json.loads(done.stdout))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=4, help="of load for each gateway in each round")
    parser.add_argument("--rps", type=float, default=100)
    parser.add_argument("--near-rps", type=float, default=5)
    options = parser.parse_args()
    stubs = child("--role", "stub")
    gateways: dict[str, subprocess.Popen[str]] = {}
    load = Load()
    p50: dict[str, list[float]] = {"off": [], "exact": [], "stored": []}
    p99: dict[str, list[float]] = {"exact": [], "near": []}
    cpu: dict[str, list[float]] = {"off": [], "exact": [], "stored": [], "with exact": [], "with near": []}
    try:
        upstream = port_of(stubs)
        for mode in ("off", "exact", "near"):
            gateways[mode] = child("--role", "gateway", upstream, mode)
        ports = {mode: port_of(gateway) for mode, gateway in gateways.items()}
        for mode in ("exact", "near"):
            load(ports[mode], rps=50, seconds=STORED / 50)
        for number in range(options.rounds):
            turn = 1 if number % 2 else -1
            for way, mode in (("off", "off"), ("exact", "exact"), ("stored", "exact"))[::turn]:
                before = cpu_s(gateways[mode].pid)
                taken = load(ports[mode], rps=options.rps, seconds=options.seconds, stores=way == "stored")
                cpu[way].append((cpu_s(gateways[mode].pid) - before) / len(taken))
                p50[way].append(percentile(taken, 0.5))
            for mode in ("exact", "near")[::turn]:
                before = cpu_s(gateways[mode].pid)
                taken = load(ports[mode], rps=options.rps, near_rps=options.near_rps, seconds=options.seconds)
                cpu[f"with {mode}"].append((cpu_s(gateways[mode].pid) - before) / (options.near_rps * options.seconds))
                p99[mode].append(percentile(taken, 0.99))
            print(*(f"{mode} {1000 * rounds[-1]:.3f}" for mode, rounds in (*p50.items(), *p99.items())), flush=True)
    finally:
        for process in (*gateways.values(), stubs):
            process.terminate()
            process.wait(30)

    def added(figures: dict[str, list[float]], way: str, to: str) -> dict[str, float]:
        return spread([more - less for more, less in zip(figures[way], figures[to], strict=True)])

    ratio = [near / exact for near, exact in zip(p99["near"], p99["exact"], strict=True)]
    print(
        json.dumps(
            {
                "exact_added_p50_s": added(p50, "exact", "off"),
                "exact_added_cpu_s": added(cpu, "exact", "off"),
                "storing_added_p50_s": added(p50, "stored", "exact"),
                "storing_added_cpu_s": added(cpu, "stored", "exact"),
                "near_added_cpu_s": added(cpu, "with near", "with exact"),
                "off_p50_s": spread(p50["off"]),
                "near_p99_ratio": spread(ratio),
                "near_p99_s": spread(p99["near"]),
                "exact_p99_s": spread(p99["exact"]),
                "near_p99_of_medians_ratio": statistics.median(p99["near"]) / statistics.median(p99["exact"]),
                "rounds": options.rounds,
                "rps": options.rps,
                "near_rps": options.near_rps,
                "load_average": os.getloadavg()[0],
                "machine": asdict(this_machine()),
                "commit": commit(),
                "command": shlex.join(["python", *sys.argv]),
            }
        )
    )


def role(arguments: list[str]) -> None:
    match arguments:
        case ["stub"]:
            uvloop.run(serve_bare(stub))
        case ["gateway", port, mode]:
            uvloop.run(run_gateway(int(port), mode))
        case ["load", port, rps, near_rps, seconds, first, stores]:
            uvloop.run(
                run_load(
                    int(port),
                    rps=float(rps),
                    near_rps=float(near_rps),
                    seconds=float(seconds),
                    first=int(first),
                    stores=bool(int(stores)),
                )
            )
        case _:
            sys.exit(f"unknown role: {shlex.join(arguments)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        role(sys.argv[2:])
    else:
        main()
