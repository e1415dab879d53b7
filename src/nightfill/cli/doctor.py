"""`nightfill doctor`: what is wrong, and what to do."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from nightfill.cli.output import echo_json, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nightfill.cli.checks import Finding
    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace


@click.command()
@click.option("--model", help="GGUF file, or demo:SIZE, to look at.  [default: engines.0.model]")
@json_option
@click.pass_obj
def doctor(options: Options, /, model: str | None, as_json: bool) -> None:
    """Check this machine: engine, model, memory, disk, ports, state. Says what to do about what it finds.

    Ends with status 1 when something does not work.
    """
    from nightfill.cli.workspace import Workspace

    workspace = Workspace.load(options, {"engines.0.model": model} if model else {})
    found = []
    for finding in _findings(workspace):
        found.append(finding)
        if not as_json:
            click.echo(f"{finding.status:<4}  {finding.check + ':':<14} {finding.detail}")
            if finding.advice:
                click.echo(f"{'':<6}{'':<14} -> {finding.advice}")
    failed = sum(finding.status == "FAIL" for finding in found)
    if as_json:
        rows = [{"check": one.check, "status": one.status, "detail": one.detail, "advice": one.advice} for one in found]
        echo_json({"ok": not failed, "findings": rows})
    elif failed:
        click.echo(f"{failed} of {len(found)} checks failed")
    sys.exit(1 if failed else 0)


def _findings(workspace: Workspace) -> Iterator[Finding]:
    from nightfill.cli import checks, health

    settings = workspace.settings
    yield checks.check_versions()
    yield checks.check_engine_library()
    contents, kv_bytes_per_token = asyncio.run(health.check_contents(workspace))
    if not settings.engines:
        yield checks.warn("model", "none is configured", "nightfill doctor --model FILE.gguf, or --model demo:small")
    for engine in settings.engines:
        model = checks.check_model(engine)
        yield model
        if model.status != "FAIL" and not engine.model.startswith("demo:"):
            yield checks.check_memory(engine, kv_bytes_per_token)
    yield checks.check_data_dir(workspace.data_dir)
    yield from checks.check_disks(settings.kv, workspace.data_dir)
    yield checks.check_scratch(settings.scratch_dir)
    yield checks.check_priority()
    yield checks.check_port(settings.gateway)
    if settings.answers.compares:
        yield checks.check_near(settings.answers)
    if not settings.state:
        yield health.check_state_file(workspace.state_path)
    yield from contents
    yield from health.check_store(workspace)
