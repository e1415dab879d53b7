"""`nightfill serve`: the gateway, its live engine, and the background worker as a child."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.cli.lifecycle_room import LifecycleRoom
    from nightfill.cli.rooms import Rooms
    from nightfill.cli.root import Options
    from nightfill.cli.served import Served
    from nightfill.cli.workspace import Workspace
    from nightfill.engines.engine import Description, Engine
    from nightfill.gateway import Server
    from nightfill.state.load import LoadBoard

_LOG: Final = logging.getLogger(__name__)
_SWITCH_S: Final = 0.0005


@click.command()
@click.option("--model", help="GGUF file, or demo:tiny, demo:small, demo:medium for a model made on the spot.")
@click.option("--served-model-name", help="What requests call the model.  [default: the file's own name]")
@click.option("--context-length", type=int, help="Tokens per request.  [default: the model's, at most 32768]")
@click.option("--slots", type=int, help="Requests computed at the same time.  [default: 2]")
@click.option("--threads", type=int, help="Threads of the engine.  [default: one per core]")
@click.option("--embeddings", is_flag=True, default=None, help="Also serve /v1/embeddings.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on, 0 for any.  [default: 8700]")
@click.option("--no-sleep", is_flag=True, help="Do no background work.")
@click.option("--json", "as_json", is_flag=True, help="Say where it listens as one JSON object on one line.")
@click.pass_obj
def serve(options: Options, /, *, no_sleep: bool, as_json: bool, **given: Any) -> None:
    """Serve a model over an OpenAI-compatible API, and fill its contexts while nobody asks.

    The address is printed once the model answers. SIGTERM or Ctrl-C ends it in good order: running answers are
    finished, what was being filled is kept.
    """
    import uvloop

    from nightfill.cli.workspace import Workspace

    overrides: dict[str, object] = {
        f"engines.0.{key}": given[key]
        for key in ("model", "served_model_name", "context_length", "slots", "threads", "embeddings")
        if given[key] is not None
    }
    overrides |= {f"gateway.{key}": given[key] for key in ("host", "port") if given[key] is not None}
    if no_sleep:
        overrides["sleep.enabled"] = False
    uvloop.run(run(Workspace.load(options, overrides), as_json=as_json))


async def run(workspace: Workspace, *, as_json: bool) -> None:
    """Serve until SIGTERM or SIGINT."""
    from nightfill.cli.engine_room import engines_to_serve
    from nightfill.cli.rooms import open_board, open_rooms, sole
    from nightfill.cli.served import descriptions_of, open_served
    from nightfill.gateway import stop_on_signals
    from nightfill.observe import logs
    from nightfill.sleep import note_of
    from nightfill.sleep.stopping import unless

    # Threads that look up near answers or write the state give way to the event loop sooner than by default (5 ms).
    sys.setswitchinterval(_SWITCH_S)
    settings = workspace.settings
    logs.set_up(level=settings.log_level, kind=settings.log_format)
    wanted = engines_to_serve(settings)
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.enter_context(stop_on_signals(stop))
        rooms = await stack.enter_async_context(open_rooms(workspace))
        stack.enter_context(sole(rooms.data_dir / "serve.lock", "serves"))
        remote = any(one.kind == "vllm" for one in wanted)
        board = await stack.enter_async_context(open_board(rooms, serves=True, shared_engines=remote))
        served, models = await open_served(rooms, stack)
        descriptions = await unless(stop, descriptions_of(served))
        if descriptions is None:
            return
        for description in descriptions:
            await rooms.state.engines.put(description.engine, note_of(description))
        server = await _open_gateway(workspace, rooms, board, served, models, stack)
        if models is not None:
            called = {one.engine: one.model for one in descriptions}
            await stack.enter_async_context(models.looked_after(rooms.state, called, stop))
        await _open_background(rooms, board, served, descriptions, stop, stack)
        first = descriptions[0]
        where = {"url": server.url, "model": first.model, "pid": os.getpid(), "engine": first.version}
        if as_json:
            click.echo(msgspec.json.encode(where).decode())
        else:
            names = ", ".join(dict.fromkeys(one.model for one in descriptions))
            click.echo(f"serving {names} on {server.url}/v1 (data in {rooms.data_dir})")
        await stop.wait()
        # At once, and not when the worker has ended, which may take it seconds.
        server.refuse()
        _LOG.info("stopping: finishing what runs")


async def _open_gateway(
    workspace: Workspace,
    rooms: Rooms,
    board: LoadBoard,
    served: Sequence[Served],
    models: LifecycleRoom | None,
    stack: AsyncExitStack,
) -> Server:
    """The front door, listening until `stack` ends."""
    from nightfill.cli.answer_room import answer_room
    from nightfill.cli.books import settle_s
    from nightfill.cli.deletion import forget_fill
    from nightfill.cli.discovered import discovery_of
    from nightfill.cli.engine_room import engine_names
    from nightfill.cli.experiment import experiments_of
    from nightfill.cli.night import Scaler
    from nightfill.cli.upkeep import deletion_samples, plan_shown, store_samples
    from nightfill.gateway import Accounts, FrontDoor
    from nightfill.observe.metrics import Metrics

    settings = rooms.settings
    metrics = Metrics()
    metrics.watch(lambda: store_samples(rooms.store.report()))
    metrics.watch(lambda: deletion_samples(rooms.state.deletions))
    if models is not None:
        metrics.watch(models.samples)
    return await stack.enter_async_context(
        FrontDoor(
            settings=settings.gateway,
            contexts=settings.contexts,
            engines=[engine for one in served for engine in one.engines],
            book=rooms.state.book,
            queue=rooms.state.jobs,
            access=rooms.state.access,
            board=board,
            metrics=metrics,
            forget=lambda fill: forget_fill(rooms, fill),
            plan=lambda tenant, limit: plan_shown(rooms, tenant, limit),
            accounts=Accounts(ledger=rooms.state.ledger, budgets=rooms.state.budgets, prices=settings.prices),
            autoscale=Scaler(rooms.state, board, settings.sleep).now,
            audit_share=settings.sleep.audit_share if settings.sleep.enabled else 0.0,
            machines={name: one.settings.machine for one in served for name in engine_names(one.settings)},
            route=settings.route,
            histories=settings.history,
            settle_s=settle_s(settings),
            answers=await stack.enter_async_context(answer_room(rooms)),
            discovery=discovery_of(workspace, rooms) if settings.discovery.enabled else None,
            experiments=experiments_of(rooms),
            keeper=models.lifecycle if models is not None else None,
        ).open()
    )


async def _open_background(
    rooms: Rooms,
    board: LoadBoard,
    served: Sequence[Served],
    descriptions: Sequence[Description],
    stop: asyncio.Event,
    stack: AsyncExitStack,
) -> None:
    """What goes on beside the gateway until `stack` ends: deletions, warm slots, the worker."""
    from nightfill.cli.deletion import settling
    from nightfill.cli.engine_room import engine_names, engines_for, engines_to_fill
    from nightfill.cli.served import at_work
    from nightfill.cli.upkeep import forget_deleted, running, store_upkeep
    from nightfill.cli.work import make_worker
    from nightfill.cli.worker_process import WorkerProcess
    from nightfill.engines.engine import Reuse
    from nightfill.sleep import EnginePool, Warmer, warming

    settings = rooms.settings
    await stack.enter_async_context(running(settling(rooms, stop), name="settle deletions"))
    own = {one.settings.name: one.llama for one in served if one.llama is not None}
    awake = {one.settings.name for one in served if one.sleeper is None}
    if own:
        forgetting = forget_deleted(rooms, list(own.values()), stop)
        await stack.enter_async_context(running(forgetting, name="forget deleted"))
    if not settings.sleep.enabled:
        return
    for description in descriptions:
        # The slots of a model that sleeps are gone, and to keep them warm would keep it awake.
        if description.reuse is Reuse.NONE and description.engine in own.keys() & awake:
            warmer = Warmer(rooms.state, board, own[description.engine], settings.sleep)
            await stack.enter_async_context(warming(warmer, stop))
    fillers = engines_to_fill(settings)
    launched = [
        one for one in served if one.own and one.llama is None and one.settings in engines_for(settings, "fill")
    ]
    if fillers:
        worker = WorkerProcess(msgspec.structs.replace(settings, data_dir=str(rooms.data_dir)))
        await stack.enter_async_context(worker.running())
    if launched:
        # Its servers are ours, and who sends a request to one that sleeps must be seen by the lifecycle.
        pool = EnginePool(
            {one.settings.name: partial(_lend, one.engine) for one in launched},
            idle_stop_s={one.settings.name: float("inf") for one in launched},
            views={
                name: (one.settings.name, partial(at_work, adapter))
                for one in launched
                for name, adapter in zip(engine_names(one.settings), (None, *one.adapters), strict=True)
            },
            owns=False,
        )
        upkeep = None if fillers else store_upkeep(rooms)
        filling = make_worker(rooms, board, pool, [one.settings for one in launched], upkeep=upkeep)
        await stack.enter_async_context(running(filling.run(stop), name="fill"))


async def _lend(engine: Engine) -> Engine:
    return engine
