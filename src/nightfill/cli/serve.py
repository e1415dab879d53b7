"""`nightfill serve`: the gateway, its live engine, and the background worker as a child."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

if TYPE_CHECKING:
    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.engines.engine import Engine
    from nightfill.engines.llama.engine import LlamaEngine

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
    from nightfill.cli.answer_room import answer_room
    from nightfill.cli.books import settle_s
    from nightfill.cli.deletion import forget_fill, settling
    from nightfill.cli.discovered import discovery_of
    from nightfill.cli.engine_room import (
        engines_for,
        engines_to_serve,
        first_described,
        make_llama,
        make_split,
        make_vllm,
    )
    from nightfill.cli.night import Scaler
    from nightfill.cli.rooms import open_board, open_rooms, sole
    from nightfill.cli.upkeep import deletion_samples, forget_deleted, plan_shown, running, store_samples
    from nightfill.cli.worker_process import WorkerProcess
    from nightfill.engines.engine import Reuse
    from nightfill.gateway import Accounts, serving, stop_on_signals
    from nightfill.observe import logs
    from nightfill.observe.metrics import Metrics
    from nightfill.sleep import Warmer, warming
    from nightfill.sleep.description import note_of

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
        engines: list[tuple[Engine, float]] = []
        """With the seconds that each has to come up."""
        local: LlamaEngine | None = None
        prefill = [make_vllm(one, rooms) for one in engines_for(settings, "prefill")]
        for helper in prefill:
            stack.push_async_callback(helper.aclose)
        for one in wanted:
            engine: Engine
            if one.kind == "llama":
                engine = local = await make_llama(one, rooms, filling=False)
            elif prefill and "decode" in one.roles:
                engine = make_split(prefill, one, rooms)
            else:
                engine = make_vllm(one, rooms)
            stack.push_async_callback(engine.aclose)
            engines.append((engine, one.start_timeout_s))
        metrics = Metrics()
        metrics.watch(lambda: store_samples(rooms.store.report()))
        metrics.watch(lambda: deletion_samples(rooms.state.deletions))
        first = local.describe() if local is not None else first_described(engines)
        starting = asyncio.create_task(first, name="describe engine")
        stopping = asyncio.create_task(stop.wait(), name="wait for a signal")
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                return
            description = starting.result()
            await rooms.state.engines.put(description.engine, note_of(description))
            server = await stack.enter_async_context(
                serving(
                    settings=settings.gateway,
                    contexts=settings.contexts,
                    engines=[engine for engine, _ in engines],
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
                    machines={one.name: one.machine for one in wanted},
                    route=settings.route,
                    histories=settings.history,
                    settle_s=settle_s(settings),
                    answers=await stack.enter_async_context(answer_room(rooms)),
                    discovery=discovery_of(workspace, rooms) if settings.discovery.enabled else None,
                )
            )
            await stack.enter_async_context(running(settling(rooms, stop), name="settle deletions"))
            if local is not None:
                await stack.enter_async_context(running(forget_deleted(rooms, local, stop), name="forget deleted"))
                if settings.sleep.enabled and description.reuse is Reuse.NONE:
                    warmer = Warmer(rooms.state, board, local, settings.sleep)
                    await stack.enter_async_context(warming(warmer, stop))
            if settings.sleep.enabled and engines_for(settings, "fill"):
                worker = WorkerProcess(msgspec.structs.replace(settings, data_dir=str(rooms.data_dir)))
                await stack.enter_async_context(worker.running())
            where = {"url": server.url, "model": description.model, "pid": os.getpid(), "engine": description.version}
            if as_json:
                click.echo(msgspec.json.encode(where).decode())
            else:
                click.echo(f"serving {description.model} on {server.url}/v1 (data in {rooms.data_dir})")
            await stop.wait()
            # At once, and not when the worker has ended, which may take it seconds.
            server.refuse()
            _LOG.info("stopping: finishing what runs")
        finally:
            stopping.cancel()
            await asyncio.wait({starting, stopping})
