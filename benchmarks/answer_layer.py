"""What stored answers cost those requests that they do not serve: a stub upstream, gateways that differ in nothing but
`answers.mode`, and an open-loop load from another process that sends its requests to two of them in turn, so that what
else the machine does falls on both.

*exact*: each request is a new question, so that each look-up misses: `off` against `exact`, first without storing the
replies (`no-store`), then with it, and what that adds.
*near*: requests that have nothing to do with stored answers (they skip them) meet others on the same gateway that ask
new questions all the time: `exact` against `near`, where each of these is embedded, looked up among stored ones and
judged by the guard, and what that does to the p99 of the first. How far two p99 differ by chance is shown by the same
with a second gateway that is `exact` in the place of the one that is `near`.

A figure is the median of the rounds' with the least and the most of them; `_pooled` ones are of the requests of all
rounds together. CPU time is that of a gateway's process, and of its reader's; it grows by half and more on a machine
that is busy with other things.

    python benchmarks/answer_layer.py [--rounds 10] [--seconds 15] [--rps 100] [--near-rps 5]

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
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import uvloop

from gateway import Connection, HttpEngine, cpu_s, percentile, serve_bare, stub
from nightfill.answers.index import NearIndex
from nightfill.answers.neighbours import NearSearch, Parts
from nightfill.answers.question import Questions
from nightfill.answers.reader_process import ReaderProcess
from nightfill.bench.machine import commit, this_machine
from nightfill.cli.server_process import children
from nightfill.config import AnswerSettings, ContextSettings, GatewaySettings
from nightfill.gateway import FrontDoor
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
            reader = ReaderProcess.started()
            return Parts(reader, NearIndex(Path(folder) / "near", identity=reader.identity))

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
                FrontDoor(
                    settings=GatewaySettings(port=0),
                    contexts=ContextSettings(),
                    engines=[cast("Engine", engine)],
                    book=state.book,
                    queue=state.jobs,
                    access=state.access,
                    board=board,
                    metrics=Metrics(),
                    answers=room,
                ).open() as server,
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


async def run_load(ports: list[int], *, rps: float, near_rps: float, seconds: float, first: int, stores: bool) -> None:
    """Open loop, `rps` to each of the ports. Without `near_rps` each request is a new question; with it so many are,
    and the others skip answers. Replies to the questions may be stored if `stores`.

    Prints the latencies of the questions, or of the others, as JSON: a list for each port.
    """
    idle = {port: [await Connection.open(port) for _ in range(8)] for port in ports}
    latencies: dict[int, list[float]] = {port: [] for port in ports}
    numbers = itertools.count(first)

    async def one(port: int, due: float, sent: bytes, *, counts: bool) -> None:
        connection = idle[port].pop() if idle[port] else await Connection.open(port)
        took = await connection.ask(sent) - due
        if counts:
            latencies[port].append(took)
        idle[port].append(connection)

    for connections in idle.values():
        for connection in list(connections):
            await connection.ask(OTHER)
    plan: list[tuple[float, int, int | None]] = []
    for place, port in enumerate(ports):
        shift = place / len(ports)
        plan += [((n + shift) / rps, port, None if near_rps else next(numbers)) for n in range(int(rps * seconds))]
        # Between the others, not together with them.
        plan += [((n + shift + 0.17) / near_rps, port, next(numbers)) for n in range(int(near_rps * seconds))]
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for after_s, port, number in sorted(plan, key=lambda row: row[0]):
            sent = OTHER if number is None else request(question(number), cache={"no-store": not stores})
            due = begin + after_s
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.create_task(one(port, due, sent, counts=number is None or not near_rps))
    for connections in idle.values():
        for connection in connections:
            connection.writer.close()
    print(json.dumps([latencies[port] for port in ports]))


# --- the benchmark


def child(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def port_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


class Load:
    """Runs loads one after the other; no two requests ask the same question."""

    def __init__(self, ports: dict[str, str]) -> None:
        self._ports = ports
        self._asked = 0

    def __call__(
        self, *modes: str, rps: float, near_rps: float = 0, seconds: float, stores: bool = True
    ) -> list[list[float]]:
        first = self._asked
        self._asked += len(modes) * int(seconds * (near_rps or rps) + 1)
        ports = ",".join(self._ports[mode] for mode in modes)
        given = (ports, rps, near_rps, seconds, first, int(stores))
        command = [sys.executable, __file__, "--role", "load", *map(str, given)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return cast("list[list[float]]", json.loads(done.stdout))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def measure(
    gateways: dict[str, subprocess.Popen[str]], options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Figures by name: one of each round, and those of all together."""
    load = Load({mode: port_of(gateway) for mode, gateway in gateways.items()})
    figures: dict[str, list[float]] = defaultdict(list)
    pools: dict[str, list[float]] = defaultdict(list)
    (reader,) = children(gateways["near"].pid)

    def compared(less: str, more: str, **given: Any) -> tuple[list[float], list[float], float]:
        """Latencies of both, and the CPU seconds that the second took more."""
        before = [cpu_s(gateways[mode].pid) for mode in (less, more)]
        taken = load(less, more, rps=options.rps, seconds=options.seconds, **given)
        spent = [cpu_s(gateways[mode].pid) - was for mode, was in zip((less, more), before, strict=True)]
        return taken[0], taken[1], spent[1] - spent[0]

    load("exact", "again", "near", rps=25, seconds=STORED / 25)
    for _ in range(options.rounds):
        off, exact, cpu = compared("off", "exact", stores=False)
        figures["off_p50_s"].append(percentile(off, 0.5))
        figures["exact_added_p50_s"].append(percentile(exact, 0.5) - percentile(off, 0.5))
        figures["exact_added_cpu_s"].append(cpu / len(exact))
        off, exact, cpu = compared("off", "exact", stores=True)
        figures["exact_and_storing_added_p50_s"].append(percentile(exact, 0.5) - percentile(off, 0.5))
        figures["exact_and_storing_added_cpu_s"].append(cpu / len(exact))
        for mode in ("again", "near"):
            before = cpu_s(reader)
            exact, other, cpu = compared("exact", mode, near_rps=options.near_rps)
            pools[f"exact beside {mode}"] += exact
            pools[mode] += other
            figures[f"beside_{mode}_p99_s"].append(percentile(other, 0.99))
            figures[f"beside_{mode}_p99_ratio"].append(percentile(other, 0.99) / percentile(exact, 0.99))
            figures[f"beside_{mode}_p50_ratio"].append(percentile(other, 0.5) / percentile(exact, 0.5))
            if mode == "near":
                questions = int(options.near_rps * options.seconds)
                figures["beside_exact_p99_s"].append(percentile(exact, 0.99))
                figures["near_added_cpu_s"].append(cpu / questions)
                figures["near_reader_cpu_s"].append((cpu_s(reader) - before) / questions)
        print(*(f"{name} {values[-1]:.6f}" for name, values in figures.items()), flush=True)
    return figures, {
        f"beside_{mode}_p99_ratio_pooled": percentile(pools[mode], 0.99)
        / percentile(pools[f"exact beside {mode}"], 0.99)
        for mode in ("again", "near")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=15, help="of each load of each round")
    parser.add_argument("--rps", type=float, default=100, help="to each gateway")
    parser.add_argument("--near-rps", type=float, default=5, help="to each gateway")
    options = parser.parse_args()
    stubs = child("--role", "stub")
    gateways: dict[str, subprocess.Popen[str]] = {}
    try:
        upstream = port_of(stubs)
        for name, mode in (("off", "off"), ("exact", "exact"), ("again", "exact"), ("near", "near")):
            gateways[name] = child("--role", "gateway", upstream, mode)
        figures, pooled = measure(gateways, options)
    finally:
        for process in (*gateways.values(), stubs):
            process.terminate()
            process.wait(30)
    print(
        json.dumps(
            {
                **{name: spread(values) for name, values in figures.items()},
                **pooled,
                "rounds": options.rounds,
                "seconds": options.seconds,
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
        case ["load", ports, rps, near_rps, seconds, first, stores]:
            uvloop.run(
                run_load(
                    [int(port) for port in ports.split(",")],
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
