"""Two models in memory for one, asked in no order: requests served by model in turns, beside first come, first served.

The same requests at the same times, Poisson, each for a model drawn by lot, go to two servers, one after the other.
One of them gets them as they come, and serves them by model. The other gets them one after the other, as a front end
would give them that swaps models for whoever is first in line; those that follow each other for the same model go
together. Both put models to sleep at level 1, so what differs is the order alone.

    python benchmarks/interleaved.py [--model demo:small] [--requests 120] [--rounds 2] [--rate 100] [--turn 4]

The last line is one JSON object. `throughput_ratio` is requests a second in turns over those of first come, first
served, and `round_ratios` the same of each round; `waited_s` is the spread from a request's time to its whole answer,
and `bound_s` what no request waits longer to be let through, by the formula in `engines/lifecycle/policy.py` with what
draining, sleeping and waking took here at most.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.bench import commit, spread, this_machine
from nightfill.bench.load import arrivals
from nightfill.cli.server_process import server_process
from nightfill.engines.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

NAMES: Final = ("a", "b")
JSON: Final = {"Content-Type": "application/json"}
WORDS: Final = ("river", "table", "engine", "cloud", "window", "prefix", "token", "mountain", "chair", "cache", "paper")
TOKENS: Final = 1
SLOTS: Final = 4
MIN_AWAKE_S: Final = 2.0
"""`lifecycle.min_awake_s` as it is by default."""
SPARE: Final = 1.25
"""Memory, in sizes of a model that is awake: enough for the other asleep beside it."""
_STEP: Final = re.compile(r"(?m)^(\S+) .* model (\w+): (\w+) -> (\w+): .*?(?:\((.*)\))?$")


@dataclass(frozen=True, slots=True)
class Request:
    """One of the load."""

    due_s: float
    """After the beginning."""
    model: str
    prompt: str


@dataclass
class Arm:
    """What became of the load in one order."""

    waited_s: list[float] = field(default_factory=list)
    """From a request's time to its answer."""
    took_s: list[float] = field(default_factory=list)
    """By round, from the first request's time to the last answer."""
    swaps: int = 0
    drain_s: float = 0.0
    """The longest, as are these."""
    sleep_s: float = 0.0
    wake_s: float = 0.0

    def view(self) -> dict[str, Any]:
        found = spread(self.waited_s)
        assert found is not None
        return {
            "requests_per_s": len(self.waited_s) / sum(self.took_s),
            "waited_s": asdict(found),
            "swaps": self.swaps,
            "longest_drain_s": self.drain_s,
            "longest_sleep_s": self.sleep_s,
            "longest_wake_s": self.wake_s,
        }


def load_of(arguments: argparse.Namespace, seed: int) -> list[Request]:
    rng = random.Random(seed)
    times = arrivals(arguments.requests, rate_per_s=arguments.rate, rng=rng)
    return [Request(due_s, rng.choice(NAMES), " ".join(rng.choices(WORDS, k=8))) for due_s in times]


class Asker:
    """Asks one server."""

    def __init__(self, url: str) -> None:
        self._upstream = Upstream(url, engine="server")

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def models(self) -> dict[str, Any]:
        response = await self._upstream.request("GET", "/v1/nightfill/engines", timeout_s=60)
        return {row["name"]: row["lifecycle"] for row in msgspec.json.decode(response.body)["data"]}

    async def ask(self, request: Request) -> None:
        body = {"model": request.model, "prompt": request.prompt, "max_tokens": TOKENS, "temperature": 0}
        raw = msgspec.json.encode(body)
        response = await self._upstream.request("POST", "/v1/completions", body=raw, headers=JSON, timeout_s=600)
        assert response.status == 200, (response.status, response.body[:500])


async def in_turns(asker: Asker, load: Sequence[Request], arm: Arm) -> None:
    """All as they come."""
    began_s = time.perf_counter()

    async def one(request: Request) -> None:
        await asyncio.sleep(request.due_s - (time.perf_counter() - began_s))
        await asker.ask(request)
        arm.waited_s.append(time.perf_counter() - began_s - request.due_s)

    async with asyncio.TaskGroup() as tasks:
        for request in load:
            tasks.create_task(one(request))
    arm.took_s.append(time.perf_counter() - began_s - load[0].due_s)


async def first_come(asker: Asker, load: Sequence[Request], arm: Arm) -> None:
    """In the order in which they come; neighbours for the same model together, as many as it computes at once."""
    began_s = time.perf_counter()
    places = asyncio.Semaphore(SLOTS)

    async def one(request: Request) -> None:
        async with places:
            await asker.ask(request)
        arm.waited_s.append(time.perf_counter() - began_s - request.due_s)

    for _, neighbours in itertools.groupby(load, key=lambda request: request.model):
        async with asyncio.TaskGroup() as tasks:
            for request in neighbours:
                await asyncio.sleep(request.due_s - (time.perf_counter() - began_s))
                tasks.create_task(one(request))
    arm.took_s.append(time.perf_counter() - began_s - load[0].due_s)


def settings(arguments: argparse.Namespace, *, memory_bytes: int, **lifecycle: float) -> dict[str, Any]:
    engine = {"device": "ram", "context_length": 2048, "slots": SLOTS}
    models = {"a": arguments.model, "b": f"{arguments.model}:1"}
    return {
        "engines": [{**engine, "name": name, "served_model_name": name, "model": models[name]} for name in NAMES],
        "lifecycle": {"devices": [{"name": "ram", "max_bytes": memory_bytes}], "max_wait_s": 600, **lifecycle},
        "gateway": {"max_in_flight": 4 * arguments.requests},
        "sleep": {"enabled": False},
    }


@contextlib.asynccontextmanager
async def serving(folder: Path, wanted: dict[str, Any]) -> AsyncIterator[Asker]:
    """A server that has answered once."""
    file = await asyncio.to_thread(_written, folder, wanted)
    async with server_process([], data_dir=folder / "data", environ={"NIGHTFILL_CONFIG": str(file)}) as server:
        asker = Asker(server.url)
        try:
            await asker.ask(Request(0.0, "a", "warm"))
            yield asker
        finally:
            await asker.aclose()


def _written(folder: Path, wanted: dict[str, Any]) -> Path:
    folder.mkdir()
    file = folder / "settings.yaml"
    file.write_text(json.dumps(wanted), encoding="utf-8")
    return file


def _read_log(log: Path, arm: Arm, *, since: datetime) -> None:
    """What swapping took, from the lines on transitions."""
    text = log.read_text(encoding="utf-8")
    drained: dict[str, datetime] = {}
    for stamp, model, before, after, took in _STEP.findall(text):
        at = datetime.fromisoformat(stamp)
        if at < since or after == "stopped":
            continue
        seconds = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+) s", took)}
        match before, after:
            case _, "draining":
                drained[model] = at
            case "draining", "asleep_1" | "asleep_2":
                asleep_s = sum(seconds.values())
                arm.sleep_s = max(arm.sleep_s, asleep_s)
                arm.drain_s = max(arm.drain_s, (at - drained[model]).total_seconds() - asleep_s)
            case "warming", "awake":
                arm.swaps += 1
                arm.wake_s = max(arm.wake_s, sum(seconds.values()))


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    print("how large the models are", file=sys.stderr, flush=True)
    async with serving(folder / "size", settings(arguments, memory_bytes=1 << 40)) as asker:
        sizes = [int(model["awake_bytes"]) for model in (await asker.models()).values()]
    memory = int(SPARE * max(sizes))
    hasty = settings(arguments, memory_bytes=memory, min_awake_s=0, max_turn_s=0.1)
    patient = settings(arguments, memory_bytes=memory, max_turn_s=arguments.turn)
    first, turns = Arm(), Arm()
    async with serving(folder / "first", hasty) as one, serving(folder / "turns", patient) as other:
        began = datetime.now().astimezone()
        for number in range(arguments.rounds):
            load = load_of(arguments, seed=number)
            print(f"round {number + 1}: first come, first served", file=sys.stderr, flush=True)
            await first_come(one, load, first)
            print(f"round {number + 1}: in turns", file=sys.stderr, flush=True)
            await in_turns(other, load, turns)
    for name, arm in (("first", first), ("turns", turns)):
        await asyncio.to_thread(_read_log, folder / name / "data" / "serve.log", arm, since=began)
    bound_s = len(NAMES) * (max(arguments.turn, MIN_AWAKE_S) + turns.drain_s + turns.sleep_s + turns.wake_s)
    views = {"first_come": first.view(), "in_turns": turns.view()}
    print("                         requests/s  swaps  waited p50  longest")
    for name, view in views.items():
        waited = view["waited_s"]
        print(
            f"{name:24} {view['requests_per_s']:10.2f} {view['swaps']:6} {waited['p50']:9.2f} s {waited['max']:7.2f} s"
        )
    print(f"no request waits longer to be let through than {bound_s:.2f} s")
    return {
        "command": f"python benchmarks/interleaved.py {' '.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "machine": asdict(this_machine()),
        "model": arguments.model,
        "load": f"{arguments.requests} requests of {TOKENS} token, Poisson, {arguments.rate:g} a second",
        "rounds": arguments.rounds,
        "model_bytes": sizes,
        "memory_bytes": memory,
        "max_turn_s": arguments.turn,
        **views,
        "round_ratios": [theirs / ours for theirs, ours in zip(first.took_s, turns.took_s, strict=True)],
        "throughput_ratio": views["in_turns"]["requests_per_s"] / views["first_come"]["requests_per_s"],
        "bound_s": bound_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Two models in memory for one: in turns, and first come first served.")
    parser.add_argument("--model", default="demo:small")
    parser.add_argument("--requests", type=int, default=120, help="of each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=100.0, help="a second")
    parser.add_argument("--turn", type=float, default=4.0, help="lifecycle.max_turn_s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightfill-interleaved-") as folder:
        found = asyncio.run(measure(arguments, Path(folder)))
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
