"""Filling a context before all others, and watching it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from nightfill.contexts.context import FillKey, FillState
from nightfill.errors import BadInput, NightfillError
from nightfill.ledger import tokens_to_reserve
from nightfill.sleep.description import seen_last
from nightfill.state.jobs import ASKED, JobKind, JobState
from nightfill.state.process import is_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nightfill.contexts import Context, Fill, Form
    from nightfill.state.jobs import Job, JobId
    from nightfill.state.state import State

_LOOK_EVERY_S: Final = 0.25
_PATIENCE_S: Final = 5.0
_SHOWN: Final = ("nobody has taken the job yet: is `nightfill serve` running with this data folder?",)

Watch = "Callable[[Job, Fill | None], None]"


@dataclass(frozen=True, slots=True)
class Asked:
    """One form of a context that is to be filled; `job` is None when it is ready already."""

    key: FillKey
    job: Job | None


async def ask(state: State, context: Context, *, again: bool = False) -> list[Asked]:
    """Queue fills of all forms of the context for the engines seen last, before all others.

    `again` also fills what is ready. Raises BadInput when no engine has run with this state yet, BudgetSpent.
    """
    descriptions = seen_last(await state.engines.notes())
    if not descriptions:
        raise BadInput("no engine has run with this data folder yet: start `nightfill serve --model FILE` first")
    asked = []
    for description, form in itertools.product(descriptions, context.forms):
        key = _key(context, form, description.signature)
        fill = await state.book.fill(key)
        if fill is not None and fill.state is FillState.READY and fill.stored_tokens >= len(fill.tokens):
            if not again:
                asked.append(Asked(key, None))
                continue
            await state.book.mark_fill(key, state=FillState.STALE, reason="asked for again")
        job = await state.jobs.enqueue(
            kind=JobKind.FILL,
            target=str(key),
            tenant=context.tenant,
            label=context.name,
            priority=ASKED,
            total_tokens=len(fill.tokens) if fill else 0,
            user=context.user,
            needs=description.signature,
            reserve_tokens=tokens_to_reserve(context, fill),
        )
        if job.state is JobState.DEAD and await state.jobs.retry(job.id):
            job = await state.jobs.get(job.id) or job
        asked.append(Asked(key, job))
    return asked


async def wait(state: State, asked: Asked, *, timeout_s: float, watch: Callable[[Job, Fill | None], None]) -> Fill:
    """Wait until the fill is ready. Raises NightfillError when its job fails, is cancelled, or takes too long."""
    began_s = time.monotonic()
    warned = False
    while asked.job is not None:
        job = await state.jobs.get(asked.job.id)
        if job is None or job.state is JobState.DONE:
            break
        watch(job, await state.book.fill(asked.key))
        if job.state in (JobState.DEAD, JobState.CANCELLED):
            raise NightfillError(f"job {job.id} ({job.label}) is {job.state}: {job.error or 'cancelled'}")
        waited_s = time.monotonic() - began_s
        if waited_s > timeout_s:
            raise NightfillError(f"job {job.id} ({job.label}) is not done after {timeout_s:g} s; it goes on")
        if not warned and waited_s > _PATIENCE_S and not await _anybody_works(state, job.id):
            click.echo(_SHOWN[0], err=True)
            warned = True
        await asyncio.sleep(_LOOK_EVERY_S)
    fill = await state.book.fill(asked.key)
    if fill is None:
        raise NightfillError("the context was changed or removed meanwhile; ask again")
    return fill


async def _anybody_works(state: State, job_id: JobId) -> bool:
    job = await state.jobs.get(job_id)
    if job is None or job.state is not JobState.QUEUED:
        return True
    return any(not is_gone(worker) for worker in await state.jobs.holders())


def _key(context: Context, form: Form, signature: str) -> FillKey:
    from nightfill.contexts import Signature

    return FillKey(tenant=context.tenant, fingerprint=context.current, form=form, signature=Signature(signature))


@contextlib.contextmanager
def progress(asked: Sequence[Asked]) -> Iterator[Callable[[Job, Fill | None], None]]:
    """A bar for each job on standard error, where that is a terminal; else nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        tasks = {
            one.job.id: bars.add_task(f"{one.job.label} ({one.key.form})", total=max(one.job.total_tokens, 1))
            for one in asked
            if one.job is not None
        }

        def watch(job: Job, fill: Fill | None) -> None:
            total = job.total_tokens or (len(fill.tokens) if fill else 0)
            done = max(job.done_tokens, fill.stored_tokens if fill else 0)
            bars.update(tasks[job.id], total=max(total, 1), completed=min(done, total))

        yield watch
