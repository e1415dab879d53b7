"""`nightfill bench`: what a first token costs with a context filled, and without, on any OpenAI-compatible address."""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click
import msgspec

from nightfill import __version__
from nightfill.cli.bench_distil import distil
from nightfill.cli.bench_kv import kv
from nightfill.cli.bench_switch import switch
from nightfill.errors import BadInput, BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nightfill.bench import Load, Prices, Report, Sample, Setting
    from nightfill.bench.client import FillSeen, Target

_COLD_QUERIES: Final = 5
_MAX_PROMPT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The options of one call, as they came."""

    url: str | None
    context: str
    prompt_file: Path | None
    queries: int
    cold_queries: int | None
    concurrency: int | None
    rate: float | None
    seed: int
    max_tokens: int
    questions: Path | None
    model: str
    api_key_env: str
    serving_per_hour: float | None
    background_per_hour: float | None
    background_seconds: float | None
    chart: Path | None
    as_json: bool

    def check(self) -> None:
        """Raises UsageError for options that do not go together."""
        if bool(self.context) == bool(self.prompt_file):
            raise click.UsageError("give either --context or --prompt-file")
        if self.rate is not None and self.concurrency is not None:
            raise click.UsageError("give either --concurrency or --rate")
        of_background = self.background_per_hour is not None or self.background_seconds is not None
        if self.serving_per_hour is None and of_background:
            raise click.UsageError("--background-per-hour and --background-seconds need --serving-per-hour")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a run is going to do."""

    target: Target
    questions: tuple[str, ...]
    queries: int
    cold_queries: int
    load: Load
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What came of it."""

    model: str
    fill: FillSeen | None
    samples: dict[str, list[Sample]]


@click.group(invoke_without_command=True, no_args_is_help=False)
@click.option("--url", help="Address of the server, such as http://127.0.0.1:8700.  [required]")
@click.option("--context", default="", help="Name of a context that the (nightfill) server has.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="Text to send whole with each query instead.")
@click.option("--queries", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="Filled queries.")
@click.option(
    "--cold-queries",
    type=click.IntRange(0, 1_000_000),
    help=f"Queries without the fill, asked first.  [default: {_COLD_QUERIES}, or --queries if fewer]",
)
@click.option("--concurrency", type=click.IntRange(1, 256), help="Queries at a time.  [default: 1]")
@click.option("--rate", type=click.FloatRange(0, 100_000, min_open=True), help="Queries a second, at random times.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random times.")
@click.option("--max-tokens", type=click.IntRange(1, 1 << 20), default=8, show_default=True, help="Of each answer.")
@click.option("--questions", type=click.Path(path_type=Path), help="File of questions: one a line, or JSONL.")
@click.option("--model", default="", help="Model to ask.  [default: the first that the server lists]")
@click.option("--api-key-env", metavar="VAR", default="", help="Environment variable that holds the API key.")
@click.option("--serving-per-hour", type=click.FloatRange(0), metavar="PRICE", help="Price of an hour of serving.")
@click.option("--background-per-hour", type=click.FloatRange(0), metavar="PRICE", help="Price of a background hour.")
@click.option(
    "--background-seconds",
    type=click.FloatRange(0),
    metavar="S",
    help="Time that the fill took.  [default: what the server says]",
)
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), help="Draw the distribution into this PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on one line instead of the table.")
@click.pass_context
def bench(ctx: click.Context, /, **given: Any) -> None:
    """Measure the time to first token of queries about one context, with its fill and without.

    Against a nightfill server name a --context that is ready (`nightfill context ls`). Against any other
    OpenAI-compatible server give a --prompt-file: the cold queries then start with a random line, so that the
    server's own prefix cache is of no use to them.

    Ends with status 1 when any query failed. `nightfill bench kv` measures the tiers of the KV store
    instead, `nightfill bench distil` what distilling keeps, `nightfill bench switch` what it costs to go from one
    model to another.
    """
    if ctx.invoked_subcommand:
        return
    from nightfill.bench import compare, to_json
    from nightfill.bench.chart import require_matplotlib

    asked = _Asked(**given)
    asked.check()
    if asked.chart is not None:
        require_matplotlib()
    plan = _plan(asked)
    with _progress(plan.queries + plan.cold_queries) as advance:
        outcome = asyncio.run(_run(plan, advance))
    report = compare(outcome.samples, prices=_prices(asked, outcome.fill), notes=_notes(outcome.fill))
    setting = _setting(plan, outcome.model, asked.context or str(asked.prompt_file))
    if asked.chart is not None:
        _draw(asked.chart, outcome.samples, report, setting)
    if asked.as_json:
        click.echo(msgspec.json.encode(to_json(report, setting)).decode())
    else:
        _show(report, setting, asked.chart)
    if report.failed:
        click.echo(f"{report.failed} of {plan.queries + plan.cold_queries} queries failed", err=True)
        sys.exit(1)


bench.add_command(kv)
bench.add_command(distil)
bench.add_command(switch)


def _plan(asked: _Asked) -> _Plan:
    from nightfill.bench import QUESTIONS, ClosedLoop, OpenLoop, read_questions
    from nightfill.bench.client import Target

    queries, cold, rate = asked.queries, asked.cold_queries, asked.rate
    return _Plan(
        target=Target(
            url=_checked_url(asked.url),
            model=asked.model,
            context=asked.context,
            prompt=_read_prompt(asked.prompt_file) if asked.prompt_file is not None else "",
            max_tokens=asked.max_tokens,
            api_key=_api_key(asked.api_key_env),
        ),
        questions=QUESTIONS if asked.questions is None else read_questions(asked.questions),
        queries=queries,
        cold_queries=min(_COLD_QUERIES, queries) if cold is None else cold,
        load=ClosedLoop(concurrency=asked.concurrency or 1)
        if rate is None
        else OpenLoop(rate_per_s=rate, seed=asked.seed),
        seed=asked.seed,
    )


def _prices(asked: _Asked, fill: FillSeen | None) -> Prices | None:
    from nightfill.bench import Prices

    if asked.serving_per_hour is None:
        return None
    seen_s = fill.fill_s if fill is not None else 0.0
    return Prices(
        serving_per_hour=asked.serving_per_hour,
        background_per_hour=asked.background_per_hour or 0.0,
        background_s=seen_s if asked.background_seconds is None else asked.background_seconds,
    )


async def _run(plan: _Plan, advance: Callable[[Sample], None]) -> _Outcome:
    """Ask the cold queries, then the filled ones."""
    from nightfill.bench import COLD, FILLED, Query, drive, queries
    from nightfill.bench.client import Client

    samples = {}
    async with Client(plan.target) as client:
        model = await client.choose_model()
        fill = await client.fill_seen() if plan.target.context else None
        for arm, count in ((COLD, plan.cold_queries), (FILLED, plan.queries)):
            if arm == FILLED and plan.target.prompt:
                # what a fill does for nightfill, one query does for a server's own prefix cache; it is not counted
                await client.ask(Query(index=-1, question=plan.questions[0], cold=False), 0.0)
            if count:
                todo = queries(plan.questions, count=count, cold=arm == COLD)
                rng = random.Random(plan.seed)  # noqa: S311 - arrival times, not secrets
                samples[arm] = await drive(client.ask, todo, plan.load, rng=rng, done=advance)
    return _Outcome(model=model, fill=fill, samples=samples)


def _notes(fill: FillSeen | None) -> tuple[str, ...]:
    if fill is None or fill.state == "ready":
        return ()
    so_far = f", {fill.stored_tokens} of {fill.tokens} tokens" if fill.tokens else ""
    return (f"the context was not ready when the run began: its fill was {fill.state}{so_far}",)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Sample], None]]:
    """A bar on standard error, where that is a terminal; standard output is for the result alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("asking"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)

        def advance(sample: Sample) -> None:
            said = sample.error or f"first token after {sample.ttft_s or 0:.3f} s"
            progress.update(task, advance=1, description=said)

        yield advance


def _show(report: Report, setting: Setting, chart: Path | None) -> None:
    from rich.console import Console

    from nightfill.bench import to_table

    console = Console()
    console.print(to_table(report))
    console.print(f"{setting.context}, model {setting.model}, {setting.load}", highlight=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if chart is not None:
        console.print(f"chart: {chart}", highlight=False, markup=False, soft_wrap=True)


def _draw(chart: Path, samples: dict[str, list[Sample]], report: Report, setting: Setting) -> None:
    from nightfill.bench import FILLED
    from nightfill.bench.chart import draw

    arms = {name: [s.ttft_s for s in of_arm if s.ok and s.ttft_s] for name, of_arm in samples.items()}
    if not any(arms.values()):
        return  # every query failed: the exit status says so
    ratio = report.ratios.get(FILLED)
    title = "Time to first token" if ratio is None else f"The first token came {ratio.estimate:.3g} times sooner"
    draw(arms, chart, title=title, subtitle=f"{setting.context}  ·  {setting.model}  ·  {setting.load}")


def _setting(plan: _Plan, model: str, context: str) -> Setting:
    from nightfill.bench import Setting, commit, this_machine

    return Setting(
        command=f"nightfill {shlex.join(sys.argv[1:])}",
        url=plan.target.base_url,
        model=model,
        context=context,
        load=str(plan.load),
        max_tokens=plan.target.max_tokens,
        version=__version__,
        commit=commit(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
    )


def _checked_url(url: str | None) -> str:
    if url is None:
        raise click.MissingParameter(param_hint="'--url'", param_type="option")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadSetting(f"--url {url!r} is not an address such as http://127.0.0.1:8700", param="url")
    if "@" in parts.netloc:
        raise BadSetting("--url must not hold credentials, for it is printed: use --api-key-env", param="url")
    return url


def _api_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise BadSetting(f"the environment variable {variable} is not set", param="api-key-env")
    return key


def _read_prompt(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_PROMPT_BYTES:
            raise BadInput(f"{path} is larger than {_MAX_PROMPT_BYTES >> 20} MiB", param="prompt-file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"cannot read {path}: {exc}", param="prompt-file") from exc
    if not text:
        raise BadInput(f"{path} is empty", param="prompt-file")
    return text
