"""`nightfill bench distil`: how much of what is asked about texts survives distilling."""

from __future__ import annotations

import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nightfill.cli.bench_kv import setting
from nightfill.cli.output import echo_json, echo_table, json_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nightfill.bench.distil import Retention
    from nightfill.bench.qa import QaFile
    from nightfill.cli.root import Options


@click.command()
@click.argument("qa_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--ratio",
    "ratios",
    type=click.FloatRange(1, 100, min_open=True),
    multiple=True,
    default=(4.0, 8.0),
    show_default=True,
    help="So many times shorter; may be repeated.",
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=10, show_default=True, help="Of the random sentences.")
@click.option("--documents", type=click.IntRange(1), help="Only the first so many.  [default: all]")
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), help="Draw the shares into this PNG.")
@json_option
@click.pass_obj
def distil(
    options: Options,
    /,
    *,
    qa_file: Path,
    ratios: tuple[float, ...],
    seeds: int,
    documents: int | None,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Distil the documents of QA_FILE and count the answers that are still there.

    QA_FILE is JSONL, gzipped or plain: documents with questions, each with `answer_start` (as COVID-QA has it: kept is
    an answer whose whole span is), or with `turns` (as QMSum has it: kept is a turn of the evidence of which half is).
    Beside it stand the text's beginning and random sentences of equal length.
    """
    from nightfill.answers.embed import load_embedder
    from nightfill.bench.chart import draw_shares, require_matplotlib
    from nightfill.bench.distil import distil_json, measure
    from nightfill.bench.qa import read_qa
    from nightfill.cli.root import Options as Given
    from nightfill.cli.workspace import Workspace

    if chart is not None:
        require_matplotlib()
    file = read_qa(qa_file, limit=documents)
    embedder = load_embedder(Workspace.load(options or Given()).settings.answers.embedding)
    with _progress(len(file.documents)) as done:
        found = measure(file, ratios, embedder.embed, seeds=seeds, progress=done)
    shown = [distil_json(one) for one in found]
    if chart is not None:
        draw_shares(_bars(found), chart, title=_title(file))
    if as_json:
        about = {"format": file.format, "documents": len(file.documents), "questions": file.questions, "seeds": seeds}
        echo_json({**setting(f"nightfill {shlex.join(sys.argv[1:])}"), **about, "retention": shown})
    else:
        _show(file, found, chart)


def _bars(found: list[Retention]) -> dict[str, list[float]]:
    bars: dict[str, list[float]] = {}
    for one in found:
        length, spread = f"1/{one.ratio:g}", one.random_deviation
        bars[f"distilled to {length}"] = [one.ours.spans]
        bars[f"first {length}"] = [one.first.spans]
        bars[f"random {length}"] = [one.random.spans - spread, one.random.spans + spread]
    return bars


def _title(file: QaFile) -> str:
    what = "answers" if file.format == "answers" else "turns of evidence"
    return f"{what} kept: {len(file.documents)} documents, {file.questions} questions"


def _show(file: QaFile, found: list[Retention], chart: Path | None) -> None:
    click.echo(_title(file))
    rows = []
    for one in found:
        low, high = one.interval
        rows.append(
            [
                f"1/{one.ratio:g}",
                f"{one.ours.spans:.1%}",
                f"{one.random.spans:.1%} ± {one.random_deviation:.1%}",
                f"{one.first.spans:.1%}",
                f"{one.ratio_to_random:.2f} ({low:.2f} to {high:.2f})",
                f"{one.ours.text:.1%} / {one.random.text:.1%} / {one.first.text:.1%}",
                " / ".join(
                    "-" if kept.words is None else f"{kept.words:.1%}" for kept in (one.ours, one.random, one.first)
                ),
            ]
        )
    echo_table(["LENGTH", "KEPT", "RANDOM", "FIRST", "TO RANDOM (95 %)", "OF THEIR TEXT", "OF ANSWERS' WORDS"], rows)
    click.echo("of text and words: distilled / random / first")
    if chart is not None:
        click.echo(f"chart: {chart}")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("documents", total=total)
        yield lambda done: bars.update(task, completed=done)
