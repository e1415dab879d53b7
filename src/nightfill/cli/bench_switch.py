"""`nightfill bench switch`: what it costs to go from one model to another, on memory for one of them."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from nightfill.cli.bench_kv import setting
from nightfill.cli.output import echo_json, echo_table, json_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightfill.bench.switch import Subject
    from nightfill.cli.root import Options
    from nightfill.kv import Store

MODELS: Final = ("demo:large", "demo:large:1")
TOKENS: Final = 4096
ROUNDS: Final = 3
PROMPT_TOKENS: Final = 4
_ROOM_TOKENS: Final = 1024
"""Of a slot beyond the context: for the question and its answer, in whole blocks."""


@click.command()
@click.option("--model-a", default=MODELS[0], show_default=True, help="GGUF file, or demo:SIZE.")
@click.option("--model-b", default=MODELS[1], show_default=True, help="The other; demo:SIZE:1 has other weights.")
@click.option("--tokens", type=click.IntRange(256, 1 << 20), default=TOKENS, show_default=True, help="Of the context.")
@click.option("--rounds", type=click.IntRange(1, 100), default=ROUNDS, show_default=True, help="Each goes A, B.")
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1, 4096),
    default=PROMPT_TOKENS,
    show_default=True,
    help="Of the prompt after each switch, which is answered by one token.",
)
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), help="Draw the times into this PNG.")
@json_option
@click.pass_obj
def switch(
    options: Options,
    /,
    *,
    model_a: str,
    model_b: str,
    tokens: int,
    rounds: int,
    prompt_tokens: int,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Go from one model to another and back, one prompt each: by reloading, and by putting them to sleep.

    The processes, the lifecycle and the store are those of `nightfill serve`; they run here, on files of their own.
    """
    from nightfill.bench.chart import draw_phases, require_matplotlib
    from nightfill.cli.root import Options as Given
    from nightfill.cli.workspace import Workspace

    if chart is not None:
        require_matplotlib()
    workspace = Workspace.load(options or Given())
    workspace.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    shown = asyncio.run(_measured(workspace.data_dir, (model_a, model_b), tokens, rounds, prompt_tokens))
    if chart is not None:
        draw_phases(_bars(shown), chart, title=_title(shown), subtitle=f"{2 * rounds} switches, one prompt each")
    if as_json:
        echo_json({**setting(f"nightfill {shlex.join(sys.argv[1:])}"), "load": os.getloadavg(), **shown})
    else:
        show(shown)
        if chart is not None:
            click.echo(f"chart: {chart}")


async def _measured(
    data_dir: Path, models: tuple[str, str], tokens: int, rounds: int, prompt_tokens: int
) -> dict[str, Any]:
    from nightfill.bench.switch import HOW_COLD, Plan, run
    from nightfill.bench.switch_figures import figures
    from nightfill.config import KvSettings
    from nightfill.kv import open_store

    plan = Plan(rounds=rounds, prompt_tokens=prompt_tokens, context_tokens=tokens)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="switch-", dir=data_dir)))
        settings = KvSettings()
        store = open_store(settings, data_dir=folder)
        stack.callback(store.close)
        a, b = [
            await _subject(name, model, tokens, store, folder, settings.block_tokens, stack)
            for name, model in zip(("a", "b"), models, strict=True)
        ]
        arms = await run(a, b, plan, said=lambda what: click.echo(f"{what} ...", err=True))
    return {
        "models": {
            one.name: {"model": model, "file_bytes": one.file.stat().st_size}
            for one, model in zip((a, b), models, strict=True)
        },
        "rounds": rounds,
        "prompt_tokens": prompt_tokens,
        "made_cold_by": HOW_COLD,
        **figures(arms, context_tokens=tokens),
    }


async def _subject(
    name: str, model: str, tokens: int, store: Store, folder: Path, block_tokens: int, stack: AsyncExitStack
) -> Subject:
    from nightfill.bench.switch import Subject
    from nightfill.cli.root import environment
    from nightfill.cli.settings import cache_dir
    from nightfill.config import EngineSettings
    from nightfill.engines.llama.engine import LlamaEngine
    from nightfill.engines.llama.model import load
    from nightfill.engines.llama.process import LlamaProcess
    from nightfill.engines.llama.sleeper import LlamaSleeper

    wanted = EngineSettings(name=name, model=model, slots=1, context_length=tokens + _ROOM_TOKENS)
    cache = cache_dir(environment())
    found = await asyncio.to_thread(load, wanted, filling=False, cache_dir=cache, scratch_dir="", data_dir=folder)
    process = LlamaProcess(found.child(), name=name, start_timeout_s=wanted.start_timeout_s, again=False)
    engine = LlamaEngine(found, process=process, store=store, block_tokens=block_tokens)
    stack.push_async_callback(engine.aclose)
    return Subject(
        name=name,
        file=found.path,
        vocabulary=found.head.vocabulary,
        engine=engine,
        sleeper=LlamaSleeper(engine, process),
        pid=lambda: process.pid,
    )


def show(shown: Mapping[str, Any]) -> None:
    """The table, on standard output."""
    arms: Mapping[str, Mapping[str, Any]] = shown["arms"]
    phases = list(dict.fromkeys(phase for arm in arms.values() for phase in arm["phases_s"]))
    rows = []
    for name, arm in arms.items():
        each = [arm["phases_s"].get(phase) for phase in phases]
        rows.append(
            [
                name,
                str(arm["switches"]),
                f"{arm['total_s']:.2f}",
                f"{arm['first_prompt_s']:.3f}",
                f"{arm['steady_prompt_s']:.3f}",
                *("-" if seconds is None else f"{seconds / arm['switches']:.3f}" for seconds in each),
            ]
        )
    echo_table(["ARM", "SWITCHES", "TOTAL S", "FIRST PROMPT S", "STEADY S", *(phase.upper() for phase in phases)], rows)
    sizes = ", ".join(f"{name}: {one['model']}, {one['file_bytes']:,} bytes" for name, one in shown["models"].items())
    click.echo(f"phases are seconds of one switch, on average; {sizes}")
    read = arms["reload"]["read_bytes"] / sum(one["file_bytes"] for one in shown["models"].values()) / shown["rounds"]
    click.echo(f"reload: made cold by {shown['made_cold_by']}; {read:.0%} of the files' bytes came from the disk")
    click.echo(_title(shown))
    click.echo(
        f"first prompt after wake and warm-up: {shown['first_prompt_warm_s']:.3f} s, "
        f"{shown['first_over_steady']:.2f} times the steady one"
    )
    kept, lost = (" ".join(map(str, shown[key])) for key in ("reused_tokens_after_wake", "reused_tokens_not_kept"))
    click.echo(
        f"of {shown['context_tokens']} tokens of context, reused after each wake: {kept} with KV kept "
        f"({shown['first_prompt_kept_s']:.3f} s), {lost} without ({shown['first_prompt_not_kept_s']:.1f} s)"
    )


def _title(shown: Mapping[str, Any]) -> str:
    return (
        f"sleep with warm-up took {shown['sleep_total_s']:.2f} s, reloading {shown['reload_total_s']:.2f} s: "
        f"{shown['reload_over_sleep']:.2f} times"
    )


def _bars(shown: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    from nightfill.bench.switch import NOT_KEPT

    return {name: arm["phases_s"] for name, arm in shown["arms"].items() if name != NOT_KEPT}
