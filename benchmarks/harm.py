"""What background fills cost live requests, and what share of the idle time they get.

One model, one machine, one run: a live load that leaves half of the time idle (Poisson arrivals, each query some 400
new prompt tokens), with and without fills going on beside it. The two are interleaved in short segments with the same
arrivals in both, so that a machine that gets slower gets slower for both. Without fills means: worker and filling
engine stopped (SIGSTOP).

    python benchmarks/harm.py                  the default setting, then the curve over slice sizes
    python benchmarks/harm.py --no-curve       the default setting alone

The last line is one JSON object: live_p99_alone_s, live_p99_with_fill_s, fill_tps_alone, fill_tps_shared,
slice_tokens, idle_share and more, seconds and tokens. The default setting is measured on a model whose live requests
take a second or two, as those of real models do, the curve on one of 65 ms, where each millisecond shows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.bench import commit, percentile, this_machine
from nightfill.bench.client import Client, Target
from nightfill.bench.load import arrivals
from nightfill.bench.query import Query
from nightfill.cli.server_process import children, command_line, server_process
from nightfill.contexts import DEFAULT_TENANT, Form, Text, fingerprint_of
from nightfill.contexts.context import TextSource
from nightfill.contexts.names import parse_name
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from nightfill.bench.query import Sample
    from nightfill.cli.server_process import ServerProcess
    from nightfill.state.sqlite import SqliteState

WORDS: Final = ("import", "return", "value", "index", "count", "lambda", "yield", "class", "raise", "while", "print")
CONTEXTS: Final = 400
OUTPUT_TOKENS: Final = 4
LIVE_SHARE: Final = 0.5


@dataclass(slots=True)
class Arm:
    """What one kind of segment showed."""

    ttft_s: list[float] = field(default_factory=list)
    busy_s: float = 0.0
    wall_s: float = 0.0
    tokens: int = 0

    @property
    def idle_share(self) -> float:
        return 1.0 - self.busy_s / self.wall_s

    @property
    def fill_tps(self) -> float:
        return self.tokens / self.wall_s

    def p(self, q: float) -> float:
        return percentile(sorted(self.ttft_s), q)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One point of the curve. `slice_tokens` 0: the slice sizes itself."""

    slice_tokens: int = 0
    freeze: bool = True

    @property
    def environ(self) -> dict[str, str]:
        found = {"NIGHTFILL_SLEEP__FREEZE": str(self.freeze).lower()}
        if self.slice_tokens:
            found["NIGHTFILL_SLEEP__MIN_SLICE_TOKENS"] = found["NIGHTFILL_SLEEP__MAX_SLICE_TOKENS"] = str(
                self.slice_tokens
            )
        return found


def words(rng: random.Random, count: int) -> str:
    """Text of nearly `count` tokens that no other text begins with."""
    return f"{rng.getrandbits(64):016x} " + " ".join(rng.choice(WORDS) for _ in range(count))


class Bench:
    """One server, its background work under our thumb."""

    def __init__(self, server: ServerProcess, state: SqliteState, client: Client, *, prompt_tokens: int) -> None:
        self._server = server
        self._state = state
        self._client = client
        self._rng = random.Random(7)
        self._prompt_tokens = prompt_tokens

    def background(self) -> list[int]:
        """Process ids of the worker and of its engine."""
        workers = [pid for pid in children(self._server.process.pid) if b"--handed-over" in command_line(pid)]
        return workers + [child for pid in workers for child in children(pid)]

    @contextlib.contextmanager
    def without_fill(self) -> Iterator[None]:
        """Background work stopped where it stands. The worker decides anew about its engine afterwards."""
        stopped = self.background()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(stopped):
                os.kill(pid, signal.SIGCONT)

    async def put_contexts(self, count: int, tokens: int) -> None:
        """More work than the run can do."""
        for n in range(count):
            content = Text(words(self._rng, tokens))
            await self._state.book.put(
                tenant=DEFAULT_TENANT,
                name=parse_name(f"bench-{n}"),
                source=TextSource(),
                content=content,
                fingerprint=fingerprint_of(content),
                forms=[Form.CHAT],
            )

    async def filled_tokens(self) -> int:
        """Tokens that fills have reached by now."""
        jobs = await self._state.jobs.jobs(limit=1_000_000)
        return sum(job.done_tokens for job in jobs)

    async def serve_alone_s(self) -> float:
        """Mean time of one live query on an idle machine, from sending to the end."""
        with self.without_fill():
            for _ in range(2):
                await self._ask(0)
            return sum([(await self._ask(n)).total_s for n in range(8)]) / 8

    async def _ask(self, index: int) -> Sample:
        query = Query(index=index, question=words(self._rng, self._prompt_tokens), cold=False)
        sample = await self._client.ask(query, time.perf_counter())
        if sample.error:
            raise RuntimeError(sample.error)
        return sample

    async def segment(self, times: list[float], length_s: float, arm: Arm) -> None:
        """Live load for `length_s` seconds."""
        began_s, before = time.perf_counter(), await self.filled_tokens()
        spans: list[tuple[float, float]] = []

        async def one(at_s: float, index: int) -> None:
            await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
            query = Query(index=index, question=words(self._rng, self._prompt_tokens), cold=False)
            sent_s = time.perf_counter()
            sample = await self._client.ask(query, sent_s)
            if sample.error or sample.ttft_s is None:
                raise RuntimeError(sample.error or "no token")
            arm.ttft_s.append(sample.ttft_s)
            spans.append((sent_s, time.perf_counter()))

        async with asyncio.TaskGroup() as tasks:
            for index, at_s in enumerate(times):
                tasks.create_task(one(at_s, index))
            tasks.create_task(asyncio.sleep(length_s))
        arm.wall_s += time.perf_counter() - began_s
        arm.busy_s += covered(spans)
        arm.tokens += await self.filled_tokens() - before


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


@contextlib.asynccontextmanager
async def bench(setting: Setting, options: argparse.Namespace) -> AsyncIterator[Bench]:
    """A server with this setting, and enough contexts to fill."""
    folder = Path(tempfile.mkdtemp(prefix="nightfill-harm-"))
    try:
        async with (
            server_process(
                ["--model", f"demo:{options.size}", "--context-length", "8192"],
                data_dir=folder,
                environ=setting.environ,
            ) as server,
            open_state(folder / "state.db") as state,
            Client(Target(url=server.url, model=server.model, max_tokens=OUTPUT_TOKENS)) as client,
        ):
            run = Bench(server, state, client, prompt_tokens=options.prompt_tokens)
            await run.put_contexts(CONTEXTS, options.context_tokens)
            while not await run.filled_tokens():  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.2)
            yield run
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def measure(setting: Setting, options: argparse.Namespace, *, pairs: int) -> dict[str, Any]:
    """Alone and with fills, interleaved; and fills without live load."""
    alone, shared, idle = Arm(), Arm(), Arm()
    length_s = options.segment_s
    async with bench(setting, options) as run:
        serve_s = await run.serve_alone_s()
        rate = LIVE_SHARE / serve_s
        say(f"{setting}: one query takes {serve_s:.3f} s, so {rate:.2f} a second")
        for pair in range(pairs):
            times = [
                t for t in arrivals(int(4 * rate * length_s), rate_per_s=rate, rng=random.Random(pair)) if t < length_s
            ]
            await run.segment([], length_s / 3, idle)
            for with_fill in (pair % 2 == 0, pair % 2 == 1):
                if with_fill:
                    await run.segment(times, length_s, shared)
                else:
                    with run.without_fill():
                        await run.segment(times, length_s, alone)
            say(
                f"  pair {pair + 1}/{pairs}: p99 alone {alone.p(99):.3f} s, with fill {shared.p(99):.3f} s, "
                f"fill {shared.fill_tps:.0f} of {idle.fill_tps:.0f} tokens/s"
            )
    return {
        "model": f"demo:{options.size}",
        "slice_tokens": setting.slice_tokens,
        "freeze": setting.freeze,
        "queries": len(shared.ttft_s),
        **{f"live_p{q}_alone_s": alone.p(q) for q in (50, 95, 99)},
        **{f"live_p{q}_with_fill_s": shared.p(q) for q in (50, 95, 99)},
        "harm_p99": shared.p(99) / alone.p(99),
        "harm_p50": shared.p(50) / alone.p(50),
        "fill_tps_alone": idle.fill_tps,
        "fill_tps_shared": shared.fill_tps,
        "idle_share": alone.idle_share,
        "fill_share_of_idle": shared.fill_tps / (idle.fill_tps * alone.idle_share),
    }


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def table(points: list[dict[str, Any]]) -> str:
    """The curve as text."""
    head = (
        "slice     stopped by   p50 alone/with      p99 alone/with      harm p50  p99   fill/s alone  shared  of idle"
    )
    return "\n".join([head, *map(_row, points)])


def _row(p: dict[str, Any]) -> str:
    return (
        f"{p['slice_tokens'] or 'adaptive':<9} {'freezing' if p['freeze'] else 'its end':<10}"
        f"  {p['live_p50_alone_s']:.3f} / {p['live_p50_with_fill_s']:.3f} s"
        f"   {p['live_p99_alone_s']:.3f} / {p['live_p99_with_fill_s']:.3f} s"
        f"   {p['harm_p50']:7.2f}  {p['harm_p99']:.2f}"
        f"   {p['fill_tps_alone']:11.0f}  {p['fill_tps_shared']:6.0f}  {p['fill_share_of_idle']:6.0%}"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="medium", help="demo model of the default setting")
    parser.add_argument("--curve-size", default="small", help="demo model of the curve")
    parser.add_argument("--prompt-tokens", type=int, default=400)
    parser.add_argument("--context-tokens", type=int, default=6000)
    parser.add_argument("--segment-s", type=float, default=75.0)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--curve-pairs", type=int, default=2)
    parser.add_argument("--curve-segment-s", type=float, default=20.0)
    parser.add_argument("--no-curve", action="store_true")
    options = parser.parse_args()
    main_point = await measure(Setting(), options, pairs=options.pairs)
    curve: list[dict[str, Any]] = []
    if not options.no_curve:
        options.size, options.segment_s = options.curve_size, options.curve_segment_s
        sized = [Setting(slice_tokens=size, freeze=freeze) for freeze in (True, False) for size in (128, 512, 2048)]
        for point in [Setting(), *sized, Setting(freeze=False)]:
            curve += [await measure(point, options, pairs=options.curve_pairs)]
    print(table([main_point, *curve]))
    record = {
        "benchmark": "harm",
        **main_point,
        "curve": curve,
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": msgspec.to_builtins(this_machine()),
    }
    print(msgspec.json.encode(record).decode())


if __name__ == "__main__":
    asyncio.run(main())
