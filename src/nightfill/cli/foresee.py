"""`nightfill foresee`: the questions that are foreseen for a context; and the duties that prepare their answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from nightfill.cli.output import echo_json, echo_table, json_option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.answers.embed import Embedder
    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.config import Settings
    from nightfill.contexts import Context, ContextName, Tenant
    from nightfill.engines.engine import Description
    from nightfill.sleep import Duty
    from nightfill.sleep.predict_context import Foresight
    from nightfill.state.answers import AnswerCounts, Origin
    from nightfill.state.state import State


def foresight_of(state: State, settings: Settings) -> Foresight:
    """What foresees as the settings have it. Raises BadSetting."""
    from nightfill.cli.answer_room import make_questions
    from nightfill.sleep.answer_request import Requests
    from nightfill.sleep.predict_context import Foresight

    def load() -> Embedder:
        from nightfill.answers.embed import load_embedder

        return load_embedder(settings.answers.embedding)

    requests = Requests(make_questions(settings), settings.foresee)
    return Foresight(state, requests, answers=settings.answers, settings=settings.foresee, load=load)


def foresee_duties(state: State, settings: Settings) -> Sequence[Duty]:
    """The duties of a worker that foresees. Raises BadSetting."""
    from nightfill.sleep.answer_job import Answering
    from nightfill.sleep.predict_job import Predicting

    sees = foresight_of(state, settings)
    predicting = Predicting(sees)
    return predicting, Answering(sees, again=predicting.again)


@click.command()
@click.argument("name")
@click.option("--now", "asks", is_flag=True, help="Foresee and answer before all other background work.")
@click.option("--tenant", default="default", show_default=True, help="Whose it is.")
@json_option
@click.pass_obj
def foresee(options: Options, /, name: str, asks: bool, tenant: str, as_json: bool) -> None:
    """List the questions that are foreseen for a context, likeliest first, and how those before them were used.

    They are prepared when the context's option foresee is on and its stored answers are not off.
    """
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    view = asyncio.run(_foreseen(Workspace.load(options), parse_tenant(tenant), parse_name(name), asks=asks))
    if as_json:
        echo_json(view)
        return
    if view["why_not"]:
        click.echo(view["why_not"], err=True)
    if view["questions"]:
        rows = [
            [one["question"], one["origin"], round(one["expected"], 3), "yes" if one["prepared"] else "no"]
            for one in view["questions"]
        ]
        echo_table(["QUESTION", "FROM", "EXPECTED USES", "PREPARED"], rows)
        click.echo()
    counts = [[one["origin"], one["prepared"], one["used"], one["never_used"], one["uses"]] for one in view["counts"]]
    echo_table(["FROM", "PREPARED EVER", "USED", "NEVER USED", "USES"], counts)
    if view["job"] is not None:
        click.echo(f"job {view['job']} is queued before all others")


async def _foreseen(workspace: Workspace, tenant: Tenant, name: ContextName, *, asks: bool) -> dict[str, Any]:
    from nightfill.cli.books import known
    from nightfill.errors import BadInput
    from nightfill.sleep.predict_job import queue_prediction
    from nightfill.state.jobs import ASKED

    async with workspace.open_state() as state:
        context = await known(state, tenant, name)
        sees = foresight_of(state, workspace.settings)
        engine, why_not = await _engine(state, sees, context)
        content = await state.book.content(tenant, context.current)
        found = await sees.foreseen(context, content, engine) if engine is not None and content is not None else None
        job = None
        if asks:
            if engine is None or why_not:
                raise BadInput(f"nothing can be foreseen for {name!r} now: {why_not}", param="context")
            job = await queue_prediction(sees, context, engine, priority=ASKED)
        return {
            "context": context.name,
            "why_not": why_not,
            "questions": [
                {
                    "question": one.candidate.text,
                    "origin": one.candidate.origin,
                    "expected": one.candidate.expected,
                    "prepared": one.prepared,
                }
                for one in found or ()
            ],
            "counts": _counts(await state.answers.counts(tenant, name)),
            "job": job.id if job is not None else None,
        }


async def _engine(state: State, sees: Foresight, context: Context) -> tuple[Description | None, str]:
    """An engine that was seen here, rather one that has the context filled; and why no answer is prepared now."""
    from nightfill.sleep import description_of
    from nightfill.sleep.predict_job import target_of

    engines = [one for note in await state.engines.notes() if (one := description_of(note.body)) is not None]
    if not engines:
        return None, "it waits for the first start of an engine"
    if not sees.wanted(context):
        return engines[0], "off for this context: nightfill context add NAME ... --answers near --foresee"
    for engine in engines:
        if await sees.ready(target_of(context, engine.signature)) is not None:
            return engine, ""
    return engines[0], "it waits for the context to be filled"


def _counts(counts: Mapping[Origin, AnswerCounts]) -> list[dict[str, Any]]:
    from nightfill.state.answers import FORESEEN, AnswerCounts

    found = {origin: counts.get(origin, AnswerCounts()) for origin in FORESEEN}
    return [
        {
            "origin": origin,
            "prepared": count.stored,
            "used": count.used,
            "never_used": count.stored - count.used,
            "uses": count.uses,
        }
        for origin, count in found.items()
    ]
