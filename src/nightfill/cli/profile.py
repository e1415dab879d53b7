"""`nightfill profile`: which prefixes recur in a log of requests, and what filling them would cost and save."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from nightfill.cli.output import echo_json, json_option
from nightfill.cli.units import parse_size
from nightfill.errors import BadInput, BadSetting, StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts.profile import Contents, Profile
    from nightfill.contexts.profile_log import Line
    from nightfill.state.state import State

ASSUMED_TOKENS_PER_S: Final = 8000.0
"""Of prefill, where nothing was measured; as in `nightfill simulate`."""
_LEAST_BYTES_MEASURED: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the engines' own work in this data folder tells; else what is assumed."""

    prefill_tokens_per_s: float
    prefill_by: str
    bytes_per_token: float
    tokens_by: str


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(parse_size(value))
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--min-tokens", type=click.IntRange(1, 1 << 30), default=4096, show_default=True, help="Of a prefix.")
@click.option("--min-recurrences", type=click.IntRange(1), default=1, show_default=True, help="Uses after the first.")
@click.option(
    "--block-tokens", type=click.IntRange(1, 1 << 20), help="Of a block.  [default: as the trace says, or 256]"
)
@click.option(
    "--top", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many prefixes to show."
)
@click.option("--prefill-tps", type=click.FloatRange(0, 1e9, min_open=True), help="Tokens per second of an engine.")
@click.option("--memory", type=_Size(), default="512MiB", show_default=True, help="At most, for what is remembered.")
@click.option("--show-text", is_flag=True, help="Show the texts of places that break reuse.")
@click.option("--register", is_flag=True, help="Make contexts of the prefixes that are shown, where that can be.")
@click.option("--dry-run", is_flag=True, help="Of --register: say what would be made.")
@click.option("--tenant", help="Of --register: whose they are.  [default: the tenants of the log]")
@json_option
@click.pass_obj
def profile(
    options: Options,
    /,
    files: tuple[Path, ...],
    *,
    min_tokens: int,
    min_recurrences: int,
    block_tokens: int | None,
    top: int,
    prefill_tps: float | None,
    memory: int,
    show_text: bool,
    register: bool,
    dry_run: bool,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Find prefixes that recur in logs of OpenAI requests, and in traces of block hashes.

    FILES hold JSON lines, plain or gzipped: request bodies as they are or under `request` or `body`, with `timestamp`,
    `time` or `created` and `tenant` where there are; or `timestamp`, `input_length` and `hash_ids`. Lines that are none
    of these are counted and left out; the exit status is 2 when no line is a request.

    A prefix is shown at the longest at which its requests have not parted yet, and nested ones under each other. What
    breaks reuse (a date, an id near the top) is shown with its place.
    """
    from nightfill.cli.profile_register import register_findings
    from nightfill.cli.profile_report import report_of, show
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_tenant
    from nightfill.contexts.discovery import worth_showing
    from nightfill.contexts.profile import Contents, Measure, Profile

    if dry_run and not register:
        raise click.UsageError("--dry-run goes with --register")
    whose = parse_tenant(tenant) if tenant else None
    workspace = Workspace.load(options)
    known = asyncio.run(_known(workspace, prefill_tps))
    measure = Measure(min_tokens=min_tokens, block_tokens=block_tokens or 0, bytes_per_token=known.bytes_per_token)
    found = Profile(measure, max_bytes=memory)
    _read(files, lambda line, file, number: found.add(line, file=file, number=number))
    found.finish()
    if found.is_trace is None:
        raise BadInput(_no_requests(files, found), param="files")
    findings = worth_showing(found.sketch.findings(least=min_recurrences), top=top)
    registered = None
    if register:
        if found.is_trace:
            raise BadSetting("--register needs texts, and a trace holds hashes only", param="register")
        contents = Contents(findings, measure)
        _read(files, lambda line, _file, _number: _look(contents, line))
        registered = asyncio.run(register_findings(workspace, found, findings, contents, tenant=whose, dry_run=dry_run))
    report = report_of(
        found,
        findings,
        measure,
        known,
        workspace.settings,
        files=[file.name for file in files],
        registered=registered,
        show_text=show_text,
    )
    if as_json:
        echo_json(report)
    else:
        show(report)


def _look(contents: Contents, line: Line) -> None:
    from nightfill.contexts.profile_log import Asked

    if isinstance(line, Asked):
        contents.add(line)


def _no_requests(files: Sequence[Path], found: Profile) -> str:
    first = f"; line {found.bad_shown[0].line}: {found.bad_shown[0].why}" if found.bad_shown else ""
    return f"{', '.join(map(str, files))}: no line is a request{first}"


def _read(files: Sequence[Path], add: Callable[[Line, str, int], object]) -> None:
    from nightfill.contexts.profile_log import read_log

    with _progress(files) as advanced:
        for file in files:
            for number, line in read_log(file, advanced=functools.partial(advanced, file)):
                add(line, file.name, number)


@contextlib.contextmanager
def _progress(files: Sequence[Path]) -> Iterator[Callable[[Path, int], object]]:
    """A bar for each file on standard error, where that is a terminal; else nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        tasks = {file: bars.add_task(file.name, total=file.stat().st_size if file.exists() else None) for file in files}
        yield lambda file, done: bars.update(tasks[file], completed=done)


async def _known(workspace: Workspace, prefill_tps: float | None) -> Known:
    """Speed and size of tokens by the fills of this data folder; it is not made if it is not there."""
    from nightfill.contexts.discovery_prompt import BYTES_PER_TOKEN

    speed, bytes_per_token = None, None
    if workspace.settings.state or workspace.state_path.exists():
        try:
            async with workspace.open_state() as state:
                speed, bytes_per_token = await _measured(state)
        except StateError as exc:
            click.echo(f"what was measured is not used, for the state cannot be read: {exc}", err=True)
    if prefill_tps is not None:
        speed, by = prefill_tps, "given"
    elif speed is not None:
        by = "as the fills in the state took"
    else:
        speed, by = ASSUMED_TOKENS_PER_S, "assumed"
    return Known(
        prefill_tokens_per_s=speed,
        prefill_by=by,
        bytes_per_token=bytes_per_token or BYTES_PER_TOKEN,
        tokens_by=(
            "by the bytes per token of the contexts in the state, as their engine's tokenizer has them"
            if bytes_per_token
            else "estimated as bytes / 4"
        ),
    )


async def _measured(state: State) -> tuple[float | None, float | None]:
    fills = await state.book.fills()
    sizes = {(one.tenant, one.current): one.content_bytes for one in await state.book.contexts()}
    stored = sum(fill.stored_tokens for fill in fills)
    seconds = sum(fill.fill_seconds for fill in fills)
    whole = [
        (sizes[key], len(fill.tokens)) for fill in fills if (key := (fill.key.tenant, fill.key.fingerprint)) in sizes
    ]
    text, tokens = sum(size for size, _ in whole), sum(tokens for _, tokens in whole)
    return (
        stored / seconds if stored and seconds > 0 else None,
        text / tokens if tokens and text >= _LEAST_BYTES_MEASURED else None,
    )
