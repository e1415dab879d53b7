"""`nightfill demo`: the whole of it on this machine, with a model made on the spot and a codebase that is there."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import random
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from nightfill import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.progress import Progress

    from nightfill.bench import Report, Sample
    from nightfill.bench.client import Client
    from nightfill.cli.server_process import ServerProcess

CONTEXT: Final = "msgspec"
"""One of our own dependencies: Python sources of some 79 KB, which everybody who runs this has."""
_CONTEXT_LENGTH: Final = 32768
_FILL_WITHIN_S: Final = 600.0
_PIPE_COLUMNS: Final = 120
RESTARTED: Final = "restarted"
_MADE_UP: Final = (
    "The demo model's weights are random: its text is noise, only its timing is real. "
    "For real answers: nightfill serve --model YOUR.gguf"
)


@click.command()
@click.option("--size", type=click.Choice(["tiny", "small", "medium"]), default="small", show_default=True)
@click.option("--cold-queries", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--queries", type=click.IntRange(1, 10_000), default=20, show_default=True, help="For each filled arm.")
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), default=Path("nightfill-demo.png"))
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on one line.")
def demo(*, size: str, cold_queries: int, queries: int, chart: Path, as_json: bool) -> None:
    """Fill a real codebase in idle time, ask about it, kill the engine, and ask again.

    Makes a small model on the spot, and keeps everything in a temporary folder that is removed at the end. Takes one
    to three minutes on two cores.
    """
    from nightfill.bench import COLD, FILLED, compare, to_table
    from nightfill.bench.chart import draw, require_matplotlib

    require_matplotlib()
    folder = Path(tempfile.mkdtemp(prefix="nightfill-demo-"))
    try:
        with _shown() as stage:
            outcome = asyncio.run(_run(stage, folder, size=size, cold_queries=cold_queries, queries=queries))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = compare(outcome.samples)
    ttft = {name: [s.ttft_s for s in arm if s.ok and s.ttft_s] for name, arm in outcome.samples.items()}
    if all(ttft.values()):
        times = report.ratios[FILLED].estimate
        subtitle = f"{CONTEXT}, {outcome.context_tokens:,} tokens  ·  {outcome.model}  ·  one query at a time"
        draw(ttft, chart, title=f"The first token came {times:.3g} times sooner", subtitle=subtitle)
    record = _record(outcome, report, chart)
    if not as_json:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console = Console(width=_PIPE_COLUMNS)
        console.print(to_table(report))
        console.print(_summary(record), highlight=False, soft_wrap=True)
        console.print(f"chart: {chart}\n{_MADE_UP}", highlight=False, markup=False, soft_wrap=True)
    else:
        click.echo(msgspec.json.encode(record).decode())
    for name in (COLD, FILLED, RESTARTED):
        if report.arms[name].failed:
            sys.exit(1)


class _Outcome(msgspec.Struct):
    model: str
    context_tokens: int = 0
    context_bytes: int = 0
    fill_s: float = 0.0
    fill_wall_s: float = 0.0
    samples: dict[str, list[Any]] = {}


async def _run(stage: _Stage, folder: Path, *, size: str, cold_queries: int, queries: int) -> _Outcome:
    from nightfill.bench import COLD, FILLED
    from nightfill.bench.client import Client, Target
    from nightfill.cli.server_process import server_process

    model = ["--model", f"demo:{size}", "--context-length", str(_CONTEXT_LENGTH)]
    stage.say(f"nightfill serve --model demo:{size}")
    async with server_process(model, data_dir=folder) as server:
        outcome = _Outcome(model=server.model)
        sources = _sources()
        stage.say(f"nightfill context add {CONTEXT} {sources} --include '*.py'")
        await _command(folder, "context", "add", CONTEXT, str(sources), "--include", "*.py", "--form", "chat")
        async with Client(Target(url=server.url, model=server.model, context=CONTEXT)) as client:
            outcome.samples[COLD] = await _ask(client, stage, "cold queries", cold_queries, cold=True)
            await _watch_fill(client, stage, outcome)
            outcome.samples[FILLED] = await _ask(client, stage, "filled queries", queries, cold=False)
            stage.say("kill -9 of the engine; nightfill starts it again")
            await server.kill_engine()
            half = queries - queries // 2
            restarted = await _ask(client, stage, "queries after the engine's restart", half, cold=False)
        stage.say("kill -9 of the whole server; started again on the same folder")
        await _kill(server)
    async with (
        server_process(model, data_dir=folder) as server,
        Client(Target(url=server.url, model=server.model, context=CONTEXT)) as client,
    ):
        if queries // 2:
            restarted += await _ask(client, stage, "queries after the server's restart", queries // 2, cold=False)
    outcome.samples[RESTARTED] = restarted
    return outcome


async def _ask(client: Client, stage: _Stage, what: str, count: int, *, cold: bool) -> list[Sample]:
    from nightfill.bench import QUESTIONS, ClosedLoop, drive, queries

    with stage.bar(what, count) as advance:
        return await drive(
            client.ask,
            queries(QUESTIONS, count=count, cold=cold),
            ClosedLoop(concurrency=1),
            rng=random.Random(0),  # noqa: S311 - nothing secret
            done=lambda _: advance(1),
        )


async def _watch_fill(client: Client, stage: _Stage, outcome: _Outcome) -> None:
    """Wait until the idle fill is ready, with a bar."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with stage.bar("filling in idle time", 1) as advance:
        async with asyncio.timeout(_FILL_WITHIN_S):
            while (seen := await client.fill_seen()).state != "ready":
                advance(seen.stored_tokens, total=seen.tokens or 1)
                await asyncio.sleep(0.1)
            advance(seen.stored_tokens, total=seen.tokens)
    outcome.context_tokens, outcome.fill_s = seen.tokens, seen.fill_s
    outcome.fill_wall_s = loop.time() - began_s
    outcome.context_bytes = seen.bytes


async def _command(folder: Path, *arguments: str) -> None:
    """Run a nightfill command to its end. Raises CalledProcessError as a click error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nightfill", "--data-dir", str(folder), *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    if process.returncode:
        raise click.ClickException(f"nightfill {' '.join(arguments)}: {said.decode(errors='replace').strip()}")


async def _kill(server: ServerProcess) -> None:
    server.process.kill()
    await server.process.wait()


def _sources() -> Path:
    spec = importlib.util.find_spec(CONTEXT)
    assert spec is not None, "it is a dependency of ours"
    assert spec.origin is not None
    return Path(spec.origin).parent


def _record(outcome: _Outcome, report: Report, chart: Path) -> dict[str, Any]:
    from nightfill.bench import COLD, FILLED, commit, this_machine

    mean = {name: arm.ttft_s.mean if arm.ttft_s else None for name, arm in report.arms.items()}
    warm: Sequence[Sample] = [*outcome.samples[FILLED], *outcome.samples[RESTARTED]]
    layers = {sample.layer for sample in warm}
    reused = [sample.cached_tokens or 0 for sample in warm]
    return {
        "benchmark": "demo",
        "context_tokens": outcome.context_tokens,
        "context_bytes": outcome.context_bytes,
        "cold_ttft_s": mean[COLD],
        "filled_ttft_s": mean[FILLED],
        "restarted_ttft_s": mean[RESTARTED],
        "restarted_first_ttft_s": outcome.samples[RESTARTED][0].ttft_s,
        "reused_tokens": sum(reused) / len(reused),
        "least_reused_tokens": min(reused),
        "layer": layers.pop() if len(layers) == 1 else ",".join(sorted(layers)),
        "fill_engine_s": outcome.fill_s,
        "fill_wall_s": outcome.fill_wall_s,
        "model": outcome.model,
        "chart": str(chart),
        "version": __version__,
        "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": msgspec.to_builtins(this_machine()),
    }


def _summary(record: dict[str, Any]) -> str:
    if not (record["cold_ttft_s"] and record["filled_ttft_s"] and record["restarted_ttft_s"]):
        return "Some queries failed; see above."
    return (
        f"{record['context_tokens']:,} tokens of {CONTEXT}'s sources ({record['context_bytes'] / 1000:.0f} KB) were "
        f"filled in {record['fill_engine_s']:.1f} s of idle time. The first token then came "
        f"{record['cold_ttft_s'] / record['filled_ttft_s']:.0f} times sooner, and "
        f"{record['cold_ttft_s'] / record['restarted_ttft_s']:.0f} times sooner after kill -9 of the engine and of the "
        f"server; {record['least_reused_tokens']:,} tokens or more were reused each time."
    )


class _Stage:
    """Says what happens, on standard error."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def say(self, line: str) -> None:
        self._progress.console.print(f"$ {line}", highlight=False, markup=False, soft_wrap=True, style="bold")

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Any]:
        task = self._progress.add_task(what, total=total)
        done = 0

        def advance(count: int, *, total: int | None = None) -> None:
            nonlocal done
            if total is None:
                done += count
                self._progress.update(task, completed=done)
            else:
                self._progress.update(task, completed=count, total=total)

        yield advance


@contextlib.contextmanager
def _shown() -> Iterator[_Stage]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Stage(progress)
