"""Makes the engines that the settings name."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from nightfill.engines.adapted import AdaptedEngine
from nightfill.engines.llama.engine import LlamaEngine
from nightfill.engines.llama.model import load
from nightfill.engines.llama.process import LlamaProcess
from nightfill.engines.vllm.adapters import register
from nightfill.engines.vllm.engine import VllmEngine
from nightfill.engines.vllm.server import VllmServer
from nightfill.engines.vllm.split import SplitEngine
from nightfill.errors import BadSetting, EngineError, EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.cli.rooms import Rooms
    from nightfill.config import EngineSettings, Role, Settings
    from nightfill.engines.engine import Description, Engine

_DEFAULT_ROLES: Final[tuple[Role, ...]] = ("serve", "fill")
_ASK_AGAIN_S: Final = 0.5


def engines_for(settings: Settings, *roles: Role) -> tuple[EngineSettings, ...]:
    """The configured engines that have one of these roles. Raises BadSetting where none is configured."""
    if not settings.engines:
        raise BadSetting(
            "engines: none is configured: give --model FILE.gguf, or --model demo:small to try it out", param="engines"
        )
    return tuple(engine for engine in settings.engines if set(engine.roles or _DEFAULT_ROLES) & set(roles))


def engines_to_fill(settings: Settings) -> tuple[EngineSettings, ...]:
    """Those that a worker can reach; a vLLM server of our own is known to the gateway alone, which started it."""
    return tuple(one for one in engines_for(settings, "fill") if one.kind == "llama" or one.url)


def engines_to_serve(settings: Settings) -> tuple[EngineSettings, ...]:
    """Those that answer requests. Raises BadSetting where there is none."""
    found = engines_for(settings, "serve", "decode")
    if not found:
        raise BadSetting("engines: none has the role serve, or decode, so nobody could answer", param="engines")
    return found


async def make_llama(wanted: EngineSettings, rooms: Rooms, *, filling: bool) -> LlamaEngine:
    """An engine with its child process starting. The caller closes it. Raises BadSetting for an unusable model."""
    engine, process = await make_embedded(wanted, rooms, filling=filling)
    process.start()
    return engine


async def make_embedded(
    wanted: EngineSettings, rooms: Rooms, *, filling: bool = False
) -> tuple[LlamaEngine, LlamaProcess]:
    """The same with its child not started yet; one that may sleep is not started again by itself when it ends.

    The caller closes the engine, and so the child.
    """
    model = await asyncio.to_thread(
        load,
        wanted,
        filling=filling,
        cache_dir=rooms.cache_dir,
        scratch_dir=rooms.settings.scratch_dir,
        data_dir=rooms.data_dir,
    )
    name = f"{wanted.name}-fill" if filling else wanted.name
    again = filling or not wanted.device
    process = LlamaProcess(model.child(), name=name, start_timeout_s=wanted.start_timeout_s, again=again)
    gateway = rooms.settings.gateway
    engine = LlamaEngine(
        model,
        process=process,
        store=rooms.store,
        block_tokens=rooms.settings.kv.block_tokens,
        restore=rooms.settings.kv.restore,
        max_waiting=gateway.max_in_flight,
        first_byte_timeout_s=gateway.first_byte_timeout_s,
        idle_timeout_s=gateway.idle_timeout_s,
    )
    return engine, process


async def make_vllm(wanted: EngineSettings, rooms: Rooms) -> VllmEngine:
    """A client of a server that runs elsewhere. The caller closes it. Raises BadSetting."""
    gateway = rooms.settings.gateway
    return VllmEngine(
        wanted,
        store=rooms.store,
        block_tokens=rooms.settings.kv.block_tokens,
        plugin=rooms.settings.kv_backend == "nightfill",
        always_restore=rooms.settings.kv.restore == "always",
        first_byte_timeout_s=gateway.first_byte_timeout_s,
        idle_timeout_s=gateway.idle_timeout_s,
        adapters=await asyncio.to_thread(register, wanted.adapters),
    )


async def make_launched(wanted: EngineSettings, rooms: Rooms) -> tuple[VllmEngine, VllmServer]:
    """A server of our own, and a client of it that ends it; started, unless its model may sleep. Raises BadSetting."""
    gateway = rooms.settings.gateway
    adapters = await asyncio.to_thread(register, wanted.adapters)
    server = VllmServer(rooms.settings, wanted, data_dir=rooms.data_dir.absolute(), again=not wanted.device)
    if not wanted.device:
        server.start()
    engine = VllmEngine(
        server.settings,
        store=rooms.store,
        block_tokens=rooms.settings.kv.block_tokens,
        plugin=rooms.settings.kv_backend == "nightfill",
        always_restore=rooms.settings.kv.restore == "always",
        first_byte_timeout_s=gateway.first_byte_timeout_s,
        idle_timeout_s=gateway.idle_timeout_s,
        server=server,
        adapters=adapters,
    )
    return engine, server


def engine_names(engine: EngineSettings) -> tuple[str, ...]:
    """Its own, and those of its adapters, as `AdaptedEngine` says them."""
    return engine.name, *(f"{engine.name}:{one.name}" for one in engine.adapters)


def adapter_views(engine: EngineSettings) -> dict[str, tuple[str, Callable[[Engine], Engine]]]:
    """The engine's adapters, by name, as views of an engine that was made of these settings."""
    return {
        name: (engine.name, partial(_under, one.name))
        for name, one in zip(engine_names(engine)[1:], engine.adapters, strict=True)
    }


def _under(adapter: str, engine: Engine) -> Engine:
    assert isinstance(engine, LlamaEngine | VllmEngine)
    return AdaptedEngine(engine, next(one for one in engine.adapters if one.name == adapter))


async def make_filler(wanted: EngineSettings, rooms: Rooms) -> Engine:
    """An engine to fill with. The caller closes it. Raises BadSetting."""
    if wanted.kind == "vllm":
        return await make_vllm(wanted, rooms)
    return await make_llama(wanted, rooms, filling=True)


async def make_split(prefill: Sequence[VllmEngine], decode: EngineSettings, rooms: Rooms) -> SplitEngine:
    """An engine that answers with what the `prefill` ones computed. The caller closes it, and them."""
    return SplitEngine(
        prefill,
        await make_vllm(decode, rooms),
        store=rooms.store,
        block_tokens=rooms.settings.kv.block_tokens,
        settings=rooms.settings.split,
    )


async def first_described(engines: Sequence[tuple[Engine, float]]) -> Description:
    """What the first engine that is up says of itself. Each has its number of seconds to come up.

    Raises what ails the last of them when none does.
    """
    failure: EngineError | None = None
    tasks = [asyncio.create_task(described(engine, within_s), name="first look") for engine, within_s in engines]
    try:
        for done in asyncio.as_completed(tasks):
            try:
                return await done
            except EngineError as exc:
                failure = exc
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert failure is not None
    raise failure


async def described(engine: Engine, within_s: float, *, comes_up: bool = True) -> Description:
    """What the engine says of itself; asked again for so many seconds while it is not there. Raises EngineError.

    `comes_up`: it may not be there yet. Else it was started by asking, and what ails it will not go away.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while True:
        try:
            return await engine.describe()
        except (EngineUnavailable, EngineTimeout) as exc:
            if loop.time() > deadline_s or (isinstance(exc, EngineUnavailable) and not comes_up):
                raise
        await asyncio.sleep(_ASK_AGAIN_S)
