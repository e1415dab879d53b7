"""`nightfill bench kv`: how fast each tier of the KV store moves blocks, beside the plainest way to do so."""

from __future__ import annotations

import shlex
import signal
import sys
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from nightfill import __version__
from nightfill.cli.output import echo_json, echo_table, json_option
from nightfill.cli.units import parse_size
from nightfill.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nightfill.bench.tiers import TierFigures
    from nightfill.cli.root import Options
    from nightfill.config import KvSettings, TierSettings

ROUNDS: Final = 5
PARALLEL_ROUNDS: Final = 3
STORE_ROUNDS: Final = 3
_MAX_BLOCK_BYTES: Final = 256 << 20
_LOOKUPS: Final = 50


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers alone
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(parse_size(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.option(
    "--tier",
    "chosen",
    multiple=True,
    metavar="NAME",
    help="A tier, such as disk or redis; may be repeated.  [default: all]",
)
@click.option("--block-bytes", type=_Size(), default="4MiB", show_default=True, help="Of KV in one block.")
@click.option("--total-bytes", type=_Size(), default="256MiB", show_default=True, help="Of blocks in each tier.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=ROUNDS, show_default=True, help="Over all blocks.")
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), help="Draw the rates into this PNG.")
@json_option
@click.pass_obj
def kv(
    options: Options,
    /,
    *,
    chosen: tuple[str, ...],
    block_bytes: int,
    total_bytes: int,
    rounds: int,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Measure the tiers of the settings: look-up, load and save, beside the bare device and the bare socket.

    Works on empty tiers of its own beside those of the settings, on the same devices, and deletes them at the end, also
    on Ctrl-C: nothing that is stored is read, replaced or evicted.
    """
    from nightfill.bench.chart import draw_tiers, require_matplotlib
    from nightfill.bench.tiers import tier_json
    from nightfill.cli.root import Options as Given
    from nightfill.cli.workspace import Workspace

    if chart is not None:
        require_matplotlib()
    workspace = Workspace.load(options or Given())
    with _ended_by_signals():
        figures = measure(
            workspace.settings.kv,
            data_dir=workspace.data_dir,
            chosen=chosen,
            block_bytes=block_bytes,
            total_bytes=total_bytes,
            rounds=rounds,
        )
    shown = {one.name: tier_json(one) for one in figures}
    if chart is not None:
        draw_tiers(shown, chart)
    if as_json:
        echo_json({**setting(f"nightfill {shlex.join(sys.argv[1:])}"), "tiers": shown})
    else:
        show(shown)
        if chart is not None:
            click.echo(f"chart: {chart}")


def measure(
    settings: KvSettings,
    *,
    data_dir: Path,
    chosen: Sequence[str] = (),
    block_bytes: int,
    total_bytes: int,
    rounds: int = ROUNDS,
) -> list[TierFigures]:
    """The figures of the chosen tiers of the settings, or of all. Raises BadInput, BadSetting, KvError."""
    from nightfill.kv.trial import tier_names

    names = tier_names(settings.tiers)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise BadInput(f"there is no tier {unknown[0]!r}: the settings have {', '.join(names)}", param="tier")
    if not 4096 <= block_bytes <= min(total_bytes, _MAX_BLOCK_BYTES):
        raise BadInput(
            f"--block-bytes {block_bytes} must be between 4096 and {_MAX_BLOCK_BYTES}, and at most --total-bytes",
            param="block-bytes",
        )
    places = [place for place, name in enumerate(names) if not chosen or name in chosen]
    count = total_bytes // block_bytes
    return [
        _measure_one(settings, place, data_dir=data_dir, block_bytes=block_bytes, count=count, rounds=rounds)
        for place in places
    ]


def setting(command: str) -> dict[str, Any]:
    """What a figure was measured on, and when."""
    import msgspec

    from nightfill.bench import commit, this_machine

    return {
        "command": command,
        "version": __version__,
        "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": msgspec.to_builtins(this_machine()),
    }


def show(tiers: Mapping[str, Mapping[str, Any]]) -> None:
    """The table, on standard output."""
    headers = ["tier", "threads", "look-up", "load", "raw", "ratio", "save", "raw", "ratio", "store load", "store save"]
    rows = []
    for name, one in tiers.items():
        rows.append(
            [
                name,
                1,
                f"{one['lookup_s'] * 1e6:.1f} us",
                *_cells(one),
                _rate(one["store_load_bps"]),
                _rate(one["store_save_bps"]),
            ]
        )
        rows += [[name, more["threads"], "", *_cells(more), "", ""] for more in one["parallel"]]
    echo_table(headers, rows)
    for name, one in tiers.items():
        against = f"; raw: {one['raw']}" if one["raw"] else ""
        click.echo(f"{name}: {one['what']}, {one['blocks']} blocks of {one['block_bytes']:,} bytes{against}")
    click.echo("GB/s, medians of rounds in which both took turns; the store's figures include sealing and verifying")


def _cells(one: Mapping[str, Any]) -> list[str]:
    cells = []
    for ours, raw, ratio in (("load_bps", "raw_bps", "load_ratio"), ("save_bps", "raw_save_bps", "save_ratio")):
        cells += [_rate(one[ours]), _rate(one[raw]), "-" if one[ratio] is None else f"{one[ratio]:.2f}"]
    return cells


def _rate(bps: float | None) -> str:
    return "-" if bps is None else f"{bps / 1e9:.2f}"


def _measure_one(
    settings: KvSettings, place: int, *, data_dir: Path, block_bytes: int, count: int, rounds: int
) -> TierFigures:
    from nightfill.bench.tiers import RAW, TIER, TierFigures, Work, rates, timed_each
    from nightfill.cli.kv_movers import StoreMover, TierMover, raw_mover
    from nightfill.kv.block import sealed_bytes
    from nightfill.kv.store import READ_THREADS
    from nightfill.kv.trial import Need, open_trial

    wanted = settings.tiers[place]
    nbytes = sealed_bytes(block_bytes)
    passes = 2 * (1 + rounds + 1 + PARALLEL_ROUNDS) + 1 + STORE_ROUNDS
    need = Need(block_bytes=nbytes, blocks=count, beside=count, written=passes * count)
    with ExitStack() as stack:
        trial = stack.enter_context(open_trial(settings, place, need, data_dir=data_dir))
        mover = TierMover(trial, block_bytes=block_bytes, count=count)
        raw, what = raw_mover(trial, wanted, mover.sealed, count=count)
        arms = {TIER: mover} if raw is None else {TIER: mover, RAW: raw}
        if raw is not None:
            stack.callback(raw.close)
        by_threads = {
            threads: rates(arms, Work(blocks=count, block_bytes=nbytes, rounds=done, threads=threads))
            for threads, done in ((1, rounds), (READ_THREADS, PARALLEL_ROUNDS))
        }
        mover.verify()
        lookups = timed_each(mover.look_up, count)
        all_lookups = timed_each(lambda _: mover.look_up_all(), min(_LOOKUPS, count))
        for index in range(count):
            mover.forget(index)
        through = StoreMover(trial, block_bytes=block_bytes, count=count)
        store = rates({TIER: through}, Work(blocks=count, block_bytes=block_bytes, rounds=STORE_ROUNDS))[TIER]
        return TierFigures(
            name=trial.tier.name,
            what=_what(wanted, direct=trial.direct),
            raw=what,
            block_bytes=block_bytes,
            blocks=count,
            lookup_s=lookups,
            lookup_all_s=all_lookups,
            threads=by_threads,
            store=store,
        )


def _what(wanted: TierSettings, *, direct: bool) -> str:
    match wanted.kind:
        case "ram":
            return "an arena in shared memory" if wanted.shared else "memory of this process"
        case "disk":
            return "files, O_DIRECT" if direct else "files, through the page cache"
        case "redis":
            return "a server on a Unix socket" if wanted.url.startswith("unix:") else "a server over TCP"
        case "s3":
            return "a bucket"


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """What asks this process to end lets it clean up first, as Ctrl-C does."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
