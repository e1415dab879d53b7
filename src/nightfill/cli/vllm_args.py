"""`nightfill vllm-args`: the command line that starts a vLLM server for a config."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightfill.cli.output import echo_json, json_option

if TYPE_CHECKING:
    from nightfill.cli.root import Options
    from nightfill.config import EngineSettings, Settings
    from nightfill.engines.vllm.args import Launch

_DEFAULT_URL = "http://127.0.0.1:8000"


@click.command("vllm-args")
@click.option("--engine", "name", help="Which engine, by its name.  [default: the only one of kind vllm]")
@click.option("--model", default="", help="Path or name of the model.  [default: the engine's model]")
@click.option("--tensor-parallel-size", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option(
    "--kv-cache-dtype", type=click.Choice(["auto", "fp8_e4m3", "fp8_e5m2"]), default="auto", show_default=True
)
@click.option("--host-bytes", default="8GiB", show_default=True, help="Host memory between device and store.")
@click.option("--kv-cache-bytes", default="0", help="Of the engine's own KV cache, per rank.  [default: as vLLM takes]")
@click.option("--cpu", is_flag=True, help="For vLLM on a processor: tests and trials.")
@click.option(
    "--idle-slice-tokens",
    type=click.IntRange(0, 65536),
    default=0,
    help="Use our scheduler class, with fills in idle steps of so many tokens.  [default: off]",
)
@click.option("--pd", type=click.Choice(["nixl"]), help="Hand KV from GPU to GPU too, by NIXL.")
@click.option(
    "--settings-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the store's settings to this file (mode 0600), and name it on the command line instead.",
)
@click.option("--shell", is_flag=True, help="One line for `eval`, with the API key among its variables.")
@json_option
@click.pass_obj
def vllm_args(options: Options, /, name: str | None, shell: bool, as_json: bool, **given: Any) -> None:
    """Print the `vllm serve` command line for this config.

    An API key is passed in the variable VLLM_API_KEY; the text for people does not show it, --shell and --json do.
    """
    from nightfill.cli.workspace import Workspace
    from nightfill.engines.vllm.adapters import rank_for
    from nightfill.engines.vllm.args import Wanted, launch

    workspace = Workspace.load(options)
    engine, file = _engine(workspace.settings, name), given["settings_file"]
    wanted = Wanted(
        data_dir=workspace.data_dir,
        model=given["model"],
        tensor_parallel_size=given["tensor_parallel_size"],
        kv_cache_dtype=given["kv_cache_dtype"],
        host_bytes=_size(given["host_bytes"], "--host-bytes"),
        kv_cache_bytes=_size(given["kv_cache_bytes"], "--kv-cache-bytes"),
        cpu=given["cpu"],
        idle_slice_tokens=given["idle_slice_tokens"],
        pd=given["pd"] or "",
        settings_file=str(file.expanduser().absolute()) if file else "",
        lora_rank=rank_for(engine.adapters),
    )
    start = launch(workspace.settings, engine, wanted)
    if start.file:
        _write_private(Path(wanted.settings_file), start.file)
    if as_json:
        echo_json({"argv": start.argv, "env": start.env, "warnings": start.warnings})
        return
    for warning in start.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(_one_line(start) if shell else _for_people(start))


def _engine(settings: Settings, name: str | None) -> EngineSettings:
    from nightfill.config import EngineSettings
    from nightfill.errors import BadSetting

    found = [engine for engine in settings.engines if engine.kind == "vllm"]
    if name is not None:
        chosen = [engine for engine in found if engine.name == name]
        if not chosen:
            there = ", ".join(engine.name for engine in found) or "none"
            raise BadSetting(
                f"--engine {name}: no engine of kind vllm is called so; there are: {there}", param="--engine"
            )
        return chosen[0]
    if len(found) > 1:
        raise BadSetting(
            f"which engine? choose with --engine: {', '.join(engine.name for engine in found)}", param="--engine"
        )
    return found[0] if found else EngineSettings(kind="vllm", url=_DEFAULT_URL)


def _size(text: str, option: str) -> int:
    from nightfill.cli.units import parse_size
    from nightfill.errors import BadSetting

    try:
        return parse_size(text)
    except ValueError as exc:
        raise BadSetting(f"{option} {text}: {exc}", param=option) from exc


def _for_people(start: Launch) -> str:
    """One flag per line. The API key is left to the shell's environment, which must have it."""
    from nightfill.engines.vllm.args import API_KEY

    lines = [
        f'{key}="${{{key}:?the api_key of the engine}}"' if key == API_KEY else f"{key}={shlex.quote(value)}"
        for key, value in start.env.items()
    ]
    words = list(start.argv)
    first = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    lines.append(shlex.join(words[:first]))
    for word in words[first:]:
        if word.startswith("--"):
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines)


def _one_line(start: Launch) -> str:
    return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in start.env.items()), shlex.join(start.argv)])


def _write_private(path: Path, text: str) -> None:
    """Put the file there whole, readable by its owner alone from its first byte on."""
    from nightfill.errors import BadSetting

    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as exc:
        raise BadSetting(f"--settings-file {path}: {exc.strerror}", param="--settings-file") from exc
