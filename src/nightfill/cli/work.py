"""`nightfill work`: background work in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.cli.rooms import Rooms
    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.config import ContextSettings, EngineSettings
    from nightfill.contexts import Content, Context
    from nightfill.sleep import EnginePool, Worker
    from nightfill.sleep.upkeep import Upkeep
    from nightfill.state.load import LoadBoard

_LOG: Final = logging.getLogger(__name__)


@click.command()
@click.option("--model", help="GGUF file, or demo:SIZE; the same as the server's.")
@click.option("--spot", type=click.Choice(["aws", "gcp", "azure"]), help="Leave on a spot notice of this cloud.")
@click.option("--handed-over", is_flag=True, hidden=True, help="Settings come on standard input; its end is a stop.")
@click.pass_obj
def work(options: Options, /, *, model: str | None, spot: str | None, handed_over: bool) -> None:
    """Fill contexts while nobody asks. `nightfill serve` runs one of these by itself.

    SIGTERM, or a spot notice, ends it in good order within sleep.grace_s: what is computed is stored, the job goes
    back.
    """
    import uvloop

    from nightfill.cli.handover import decode_settings
    from nightfill.cli.workspace import Workspace

    if handed_over:
        settings = decode_settings(sys.stdin.buffer.readline())
        workspace = Workspace(settings=settings, data_dir=Path(settings.data_dir))
    else:
        given = {"engines.0.model": model, "sleep.spot": spot}
        workspace = Workspace.load(options, {key: value for key, value in given.items() if value})
    uvloop.run(run(workspace, stop_at_end_of=sys.stdin.fileno() if handed_over else None))


async def run(workspace: Workspace, *, stop_at_end_of: int | None) -> None:
    """Work until SIGTERM, SIGINT, a spot notice, or the end of the file descriptor."""
    from nightfill.cli.deletion import settling
    from nightfill.cli.engine_room import adapter_views, engines_to_fill, make_filler
    from nightfill.cli.leaving import end_within, stop_on_notice
    from nightfill.cli.rooms import open_board, open_rooms
    from nightfill.cli.upkeep import running, store_upkeep
    from nightfill.cli.workspace import text_seal
    from nightfill.gateway import stop_on_signals
    from nightfill.observe import logs
    from nightfill.sleep import EnginePool

    settings = workspace.settings
    _go_behind()
    logs.set_up(level=settings.log_level, kind=settings.log_format)
    wanted = engines_to_fill(settings)
    if not wanted:
        raise BadSetting("engines: none has the role fill, so there is nobody to work with", param="engines")
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.enter_context(stop_on_signals(stop))
        if stop_at_end_of is not None:
            _stop_at_end(stop_at_end_of, stop, stack)
        await stack.enter_async_context(running(end_within(settings.sleep.grace_s, stop), name="grace"))
        if settings.sleep.spot:
            await stack.enter_async_context(running(stop_on_notice(settings.sleep, stop), name="spot notices"))
        rooms = await stack.enter_async_context(open_rooms(workspace))
        remote = any(one.kind == "vllm" for one in wanted)
        board = await stack.enter_async_context(open_board(rooms, serves=False, shared_engines=remote))
        pool = EnginePool(
            {one.name: partial(make_filler, one, rooms) for one in wanted},
            idle_stop_s={one.name: float(one.fill_idle_stop_s) for one in wanted},
            views={name: view for one in wanted for name, view in adapter_views(one).items()},
        )
        worker = make_worker(rooms, board, pool, wanted, upkeep=store_upkeep(rooms))
        if settings.kv.old_key_files and (seal := text_seal(settings.kv)) is not None:
            # Before blocks: a fill whose tokens nobody can open is filled again.
            renewed = await rooms.state.reseal_texts(seal)
            _LOG.info("key change: no text is under an old key any more, %d were sealed anew", renewed)
        await stack.enter_async_context(running(settling(rooms, stop), name="settle deletions"))
        await worker.run(stop)


def make_worker(
    rooms: Rooms, board: LoadBoard, pool: EnginePool, engines: Sequence[EngineSettings], *, upkeep: Upkeep | None
) -> Worker:
    """Background work on these engines, which the pool has. Raises BadSetting."""
    from nightfill.cli.distil import distil_duty
    from nightfill.cli.engine_room import engine_names
    from nightfill.cli.foresee import foresee_duties
    from nightfill.cli.night import night_windows
    from nightfill.sleep import Worker

    settings = rooms.settings
    named = [(name, one) for one in engines for name in engine_names(one)]
    return Worker(
        rooms.state,
        board,
        pool,
        settings.sleep,
        refresh=refresher(settings.contexts),
        upkeep=upkeep,
        ttl_s=settings.kv.ttl_s,
        block_tokens=settings.kv.block_tokens,
        unshared=frozenset(name for name, one in named if set(one.roles) == {"fill"}),
        sleepers=frozenset(name for name, one in named if one.device),
        machines={name: one.machine for name, one in named},
        prices=settings.prices,
        windows=night_windows(settings.sleep),
        duties=(distil_duty(rooms.state, settings), *foresee_duties(rooms.state, settings)),
    )


def refresher(limits: ContextSettings) -> Callable[[Context], Content | None]:
    """Reads a context's source again if it looks changed since the last call for it. Called by one thread at a time."""
    from nightfill.contexts import fingerprint_of
    from nightfill.contexts.sources import refresh

    marks: dict[tuple[str, str], tuple[Any, bytes | None]] = {}

    def look(context: Context) -> Content | None:
        name = (context.tenant, context.name)
        read, mark = marks.get(name, (None, None))
        # A mark says something only about the reading that is still the current version.
        known = mark if read == (context.source, context.current) else None
        reading = refresh(context.source, limits, known)
        if reading is None:
            return None
        marks[name] = ((context.source, fingerprint_of(reading.content)), reading.mark)
        return reading.content

    return look


def _go_behind() -> None:
    """Nice 19, for us and our children: planning, cutting and sealing are background work too. Not SCHED_IDLE, since we
    may hold the state's write lock, and must get on even when no core is ever idle.
    """
    os.setpriority(os.PRIO_PROCESS, 0, 19)


def _stop_at_end(fd: int, stop: asyncio.Event, stack: AsyncExitStack) -> None:
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(fd, 4096):
            loop.remove_reader(fd)
            stop.set()

    loop.add_reader(fd, read)
    stack.callback(loop.remove_reader, fd)
