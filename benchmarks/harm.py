"""What background fills cost live requests, and what share of the idle time they get.

One model, one machine, one run: a live load that leaves half of the time idle (Poisson arrivals), with and without
fills going on beside it. The two are interleaved in short segments with the same arrivals in both, so that a machine
that gets slower gets slower for both.

    python benchmarks/harm.py                  llama.cpp: the default setting, then the curve over slice sizes
    python benchmarks/harm.py --engine vllm    one vLLM server on the processor (make vllm); see _harm_vllm.py
    python benchmarks/harm.py --no-curve       the default setting alone
    python benchmarks/harm.py --quick          that in less than two minutes

The last line is one JSON object: live_p99_alone_s, live_p99_with_fill_s, harm_p99, fill_tps_alone, fill_tps_shared,
slice_tokens, idle_share and more, seconds and tokens, and the points of the curve. harm: times of with fills over those
without, `gap` of the time between two tokens of an answer. On llama.cpp a query has some 400 new prompt tokens; the
default setting is measured on a model whose live requests take a second or two, as those of real models do, the curve
on one of 65 ms, where each millisecond shows. On vLLM a query has some 100 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from _harm import Bench, measure, say, table
from nightfill.bench import commit, this_machine
from nightfill.bench.client import Client, Target
from nightfill.cli.server_process import children, command_line, server_process
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.cli.server_process import ServerProcess
    from nightfill.state.sqlite import SqliteState

CONTEXTS: Final = 400
OUTPUT_TOKENS: Final = 4
DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "llama": {
        "size": "medium",
        "curve_size": "small",
        "prompt_tokens": 400,
        "segment_s": 75.0,
        "pairs": 4,
        "curve_segment_s": 20.0,
        "curve_pairs": 2,
        "curve": True,
    },
    "vllm": {
        "size": "tiny",
        "curve_size": "tiny",
        "prompt_tokens": 80,
        "segment_s": 15.0,
        "pairs": 3,
        "curve_segment_s": 10.0,
        "curve_pairs": 2,
        "curve": True,
    },
}
QUICK: Final[dict[str, dict[str, Any]]] = {
    "llama": {"segment_s": 18.0, "pairs": 2, "curve": False},
    "vllm": {"segment_s": 12.0, "pairs": 2, "curve": False},
}
"""What `--quick` has instead, where the command line does not say."""


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


class LlamaBench(Bench):
    """Worker and filling engine are processes of ours: both are stopped where they stand."""

    def __init__(self, server: ServerProcess, state: SqliteState, client: Client, *, prompt_tokens: int) -> None:
        super().__init__(client, state, prompt_tokens=prompt_tokens)
        self._server = server

    def background(self) -> list[int]:
        """Process ids of the worker and of its engine."""
        workers = [pid for pid in children(self._server.process.pid) if b"--handed-over" in command_line(pid)]
        return workers + [child for pid in workers for child in children(pid)]

    @contextlib.asynccontextmanager
    async def without_fill(self) -> AsyncIterator[None]:
        """The worker decides anew about its engine afterwards."""
        stopped = self.background()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(stopped):
                os.kill(pid, signal.SIGCONT)

    async def filled_tokens(self) -> int:
        jobs = await self._state.jobs.jobs(limit=1_000_000)
        return sum(job.done_tokens for job in jobs)


@contextlib.asynccontextmanager
async def bench(setting: Setting, options: argparse.Namespace) -> AsyncIterator[LlamaBench]:
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
            run = LlamaBench(server, state, client, prompt_tokens=options.prompt_tokens)
            await run.put_contexts(CONTEXTS, options.context_tokens)
            while not await run.filled_tokens():  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.2)
            yield run
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def point(setting: Setting, options: argparse.Namespace, *, pairs: int, segment_s: float) -> dict[str, Any]:
    """Start a server, measure, end it."""
    say(f"{setting}: starting")
    async with bench(setting, options) as run:
        found = await measure(run, pairs=pairs, segment_s=segment_s)
    return {
        "model": f"demo:{options.size}",
        "slice_tokens": setting.slice_tokens,
        "freeze": setting.freeze,
        "stopped_by": "freezing" if setting.freeze else "its end",
        **found,
    }


async def on_llama(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The default setting, then the curve on a smaller model."""
    points = [await point(Setting(), options, pairs=options.pairs, segment_s=options.segment_s)]
    if options.curve:
        options.size = options.curve_size
        sized = [Setting(slice_tokens=size, freeze=freeze) for freeze in (True, False) for size in (128, 512, 2048)]
        for one in [Setting(), *sized, Setting(freeze=False)]:
            points += [await point(one, options, pairs=options.curve_pairs, segment_s=options.curve_segment_s)]
    return points


async def on_vllm(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The default setting, then the curve on the same model."""
    import _harm_vllm  # needs what `make vllm` makes

    points = [
        await _harm_vllm.point(_harm_vllm.VllmSetting(), options, pairs=options.pairs, segment_s=options.segment_s)
    ]
    if options.curve:
        for one in _harm_vllm.CURVE:
            points += [
                await _harm_vllm.point(one, options, pairs=options.curve_pairs, segment_s=options.curve_segment_s)
            ]
    return points


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["llama", "vllm"], default="llama")
    parser.add_argument("--size", help="demo model of the default setting")
    parser.add_argument("--curve-size", help="demo model of the curve; on vLLM it is that of the default setting")
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--context-tokens", type=int, default=6000)
    parser.add_argument("--segment-s", type=float)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--curve-pairs", type=int)
    parser.add_argument("--curve-segment-s", type=float)
    parser.add_argument("--no-curve", dest="curve", action="store_false", default=None)
    parser.add_argument("--quick", action="store_true", help="the default setting alone, in less than two minutes")
    options = parser.parse_args()
    fitting = {**DEFAULTS[options.engine], **(QUICK[options.engine] if options.quick else {})}
    for name, value in fitting.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    main_point, *curve = points = await (on_vllm if options.engine == "vllm" else on_llama)(options)
    print(table(points))
    record = {
        "benchmark": "harm",
        "engine": options.engine,
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
