"""`nightfill jobs`: background work."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from nightfill.cli.output import echo_json, echo_table, json_option, show_ago

if TYPE_CHECKING:
    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.state.jobs import Job


@click.group()
def jobs() -> None:
    """Look at background work; retry or cancel it."""


@jobs.command("ls")
@click.option("--all", "everything", is_flag=True, help="Also those that are done or cancelled.")
@json_option
@click.pass_obj
def list_jobs(options: Options, /, everything: bool, as_json: bool) -> None:
    """List jobs, the next one first."""
    from nightfill.cli.workspace import Workspace
    from nightfill.state.views import job_view

    found = asyncio.run(_jobs(Workspace.load(options), everything=everything))
    if as_json:
        echo_json([job_view(job) for job in found])
    elif not found:
        click.echo("no jobs" if everything else "no jobs wait or run; --all shows finished ones")
    else:
        rows = [_row(job) for job in found]
        echo_table(["ID", "KIND", "CONTEXT", "STATE", "TOKENS", "FAILURES", "CHANGED", "NOTE"], rows)


@jobs.command()
@click.argument("job_id", metavar="ID", type=int)
@json_option
@click.pass_obj
def show(options: Options, /, job_id: int, as_json: bool) -> None:
    """Show one job."""
    from nightfill.cli.workspace import Workspace
    from nightfill.state.views import job_view

    view = job_view(asyncio.run(_job(Workspace.load(options), job_id)))
    if as_json:
        echo_json(view)
        return
    for key, value in view.items():
        shown = show_ago(value) if key.endswith("_at") else value
        click.echo(f"{key.removesuffix('_at').replace('_', ' ') + ':':<14} {'' if shown is None else shown}")


@jobs.command()
@click.argument("job_id", metavar="ID", type=int)
@json_option
@click.pass_obj
def retry(options: Options, /, job_id: int, as_json: bool) -> None:
    """Bring a dead job back."""
    _change(options, job_id, "retry", as_json=as_json)


@jobs.command()
@click.argument("job_id", metavar="ID", type=int)
@json_option
@click.pass_obj
def cancel(options: Options, /, job_id: int, as_json: bool) -> None:
    """Cancel a job that waits or runs. What it stored stays."""
    _change(options, job_id, "cancel", as_json=as_json)


def _change(options: Options, job_id: int, verb: str, *, as_json: bool) -> None:
    from nightfill.cli.workspace import Workspace
    from nightfill.state.views import job_view

    job = asyncio.run(_changed(Workspace.load(options), job_id, verb))
    if as_json:
        echo_json(job_view(job))
    else:
        click.echo(f"job {job.id} ({job.label}) is {job.state}")


async def _jobs(workspace: Workspace, *, everything: bool) -> list[Job]:
    from nightfill.state.jobs import JobState

    async with workspace.open_state() as state:
        return await state.jobs.jobs(
            states=None if everything else (JobState.QUEUED, JobState.LEASED, JobState.DEAD), limit=1000
        )


async def _job(workspace: Workspace, job_id: int) -> Job:
    from nightfill.errors import NotFound
    from nightfill.state.jobs import JobId

    async with workspace.open_state() as state:
        job = await state.jobs.get(JobId(job_id))
        if job is None:
            raise NotFound(f"no job {job_id}", param="ID")
        return job


async def _changed(workspace: Workspace, job_id: int, verb: str) -> Job:
    from nightfill.errors import BadInput
    from nightfill.state.jobs import JobId

    before = await _job(workspace, job_id)
    async with workspace.open_state() as state:
        act = state.jobs.retry if verb == "retry" else state.jobs.cancel
        if not await act(JobId(job_id)):
            wanted = (
                "only dead jobs can be retried" if verb == "retry" else "only jobs that wait or run can be cancelled"
            )
            raise BadInput(f"job {job_id} is {before.state}: {wanted}", param="ID")
        return await state.jobs.get(JobId(job_id)) or before


def _row(job: Job) -> list[object]:
    note, changed = job.error or job.note, show_ago(job.updated_at_s)
    return [job.id, job.kind, job.label, job.state, _progress(job), job.failures, changed, note]


def _progress(job: Job) -> str:
    return f"{job.done_tokens:,}/{job.total_tokens:,}" if job.total_tokens else ""
