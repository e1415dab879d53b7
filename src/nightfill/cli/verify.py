"""`nightfill verify`: is what is stored what the engines compute?"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from nightfill.cli.output import echo_json, echo_table, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.cli.rooms import Rooms
    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.config import EngineSettings
    from nightfill.contexts import Context, Fill
    from nightfill.engines.engine import Engine
    from nightfill.sleep.verify import Scope

_UNVERIFIED: Final = "unverified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found of one fill on one engine; the figures are None where nothing was compared."""

    context: str
    tenant: str
    form: str
    engine: str
    tokens: int
    outcome: str
    """That of `sleep.fidelity`, or `unverified`."""
    why: str
    drift: float | None = None
    noise: float | None = None
    loaded_tokens: int | None = None


@click.command()
@click.argument("names", metavar="[CONTEXT]...", nargs=-1)
@click.option("--engine", "engine_name", help="Only on this engine.  [default: all that may fill]")
@click.option("--model", help="GGUF file, or demo:SIZE; the same as the server's.")
@click.option("--questions", type=click.IntRange(1, 100), default=3, show_default=True, help="Asked of each fill.")
@click.option("--tokens", type=click.IntRange(1, 256), default=16, show_default=True, help="Of each continuation.")
@json_option
@click.pass_obj
def verify(
    options: Options,
    /,
    names: tuple[str, ...],
    engine_name: str | None,
    model: str | None,
    questions: int,
    tokens: int,
    as_json: bool,
) -> int:
    """Compare ready fills with what the engines compute, one request at a time, behind live requests.

    Greedy tokens and log-probabilities with KV from the store must be those of the engine's own prefix cache, but for
    what the engine differs by from itself. A fill that does not is put into quarantine, and filled again. Ends with
    status 1 when there was one.
    """
    from nightfill.cli.workspace import Workspace
    from nightfill.sleep.verify import Scope

    workspace = Workspace.load(options, {"engines.0.model": model} if model else {})
    scope = Scope(questions=questions, max_tokens=tokens)
    found = asyncio.run(_verify(workspace, names, engine_name, scope))
    if as_json:
        echo_json([asdict(one) for one in found])
    elif not found:
        click.echo("nothing to verify: no fill is ready")
    else:
        rows = [[one.context, one.form, one.engine, one.tokens, one.outcome, one.why] for one in found]
        echo_table(["CONTEXT", "FORM", "ENGINE", "TOKENS", "OUTCOME", "WHY"], rows)
    return int(any(one.outcome == "drift" for one in found))


async def _verify(workspace: Workspace, names: Sequence[str], engine_name: str | None, scope: Scope) -> list[Found]:
    from nightfill.cli.engine_room import adapter_views, engines_to_fill, make_filler
    from nightfill.cli.rooms import open_rooms
    from nightfill.errors import BadSetting

    wanted = [one for one in engines_to_fill(workspace.settings) if engine_name in (None, one.name)]
    if not wanted:
        raise BadSetting(f"engines: no engine with the role fill is called {engine_name!r}", param="--engine")
    async with open_rooms(workspace) as rooms:
        ready = await _ready(rooms, names)
        found: list[Found] = []
        for settings in wanted if ready else ():
            async with contextlib.aclosing(await make_filler(settings, rooms)) as engine:
                views = [view(engine) for _, view in adapter_views(settings).values()]
                for context, fill in ready:
                    for one in (engine, *views):
                        found += await _compared(rooms, settings, one, context, fill, scope)
        return found


async def _ready(rooms: Rooms, names: Sequence[str]) -> list[tuple[Context, Fill]]:
    """Ready fills of current versions, each with a context that has it. Raises NotFound for a name that is none."""
    from nightfill.contexts.context import FillState
    from nightfill.errors import NotFound

    contexts = await rooms.state.book.contexts()
    if unknown := set(names) - {context.name for context in contexts}:
        raise NotFound(f"there is no context {min(unknown)!r}", param="CONTEXT")
    by_version = {
        (context.tenant, context.current): context for context in contexts if not names or context.name in names
    }
    return [
        (by_version[fill.key.tenant, fill.key.fingerprint], fill)
        for fill in await rooms.state.book.fills()
        if fill.state is FillState.READY and (fill.key.tenant, fill.key.fingerprint) in by_version
    ]


async def _compared(
    rooms: Rooms, settings: EngineSettings, engine: Engine, context: Context, fill: Fill, scope: Scope
) -> list[Found]:
    from nightfill.cli.rooms import open_board
    from nightfill.sleep.fidelity import Verdict
    from nightfill.sleep.gatekeeper import Gatekeeper
    from nightfill.sleep.verify import VerifyRun
    from nightfill.state.jobs import JobKind
    from nightfill.state.load import NO_LOAD

    if (await engine.describe()).signature != fill.key.signature:
        return []
    whose: dict[str, Any] = {
        "context": context.name,
        "tenant": context.tenant,
        "form": fill.key.form.value,
        "engine": settings.name,
        "tokens": len(fill.tokens),
    }
    shared = set(settings.roles) != {"fill"}
    async with open_board(rooms, serves=False, shared_engines=settings.kind == "vllm") as board:
        gate = Gatekeeper(board if shared else NO_LOAD, rooms.settings.sleep, stop=asyncio.Event())
        books = rooms.state
        run = VerifyRun(fill.key, book=books.book, answers=books.answers, engine=engine, gate=gate, scope=scope)
        outcome = await run.run()
    if not isinstance(outcome, Verdict):
        return [Found(**whose, outcome=_UNVERIFIED, why="it changed meanwhile, or live requests left no room")]
    await rooms.state.jobs.count(JobKind.VERIFY, outcome.outcome)
    return [
        Found(
            **whose,
            outcome=outcome.outcome.value,
            why=outcome.why,
            drift=outcome.drift,
            noise=outcome.noise,
            loaded_tokens=outcome.loaded_tokens,
        )
    ]
