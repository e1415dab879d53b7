"""Makes the engines that the settings name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nightfill.engines.llama.engine import LlamaEngine
from nightfill.engines.llama.model import load
from nightfill.engines.llama.process import LlamaProcess
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from nightfill.cli.rooms import Rooms
    from nightfill.config import EngineSettings, Settings


def the_engine(settings: Settings) -> EngineSettings:
    """The configured engine. Raises BadSetting unless there is exactly one."""
    if len(settings.engines) != 1:
        raise BadSetting(
            f"engines: {len(settings.engines)} are configured, exactly one is needed: give --model FILE.gguf, "
            "or --model demo:small to try it out",
            param="engines",
        )
    return settings.engines[0]


async def make_engine(wanted: EngineSettings, rooms: Rooms, *, filling: bool) -> LlamaEngine:
    """An engine with its child process starting. The caller closes it. Raises BadSetting for an unusable model."""
    model = await asyncio.to_thread(
        load,
        wanted,
        filling=filling,
        cache_dir=rooms.cache_dir,
        scratch_dir=rooms.settings.scratch_dir,
        data_dir=rooms.data_dir,
    )
    name = f"{wanted.name}-fill" if filling else wanted.name
    process = LlamaProcess(model.child(), name=name, start_timeout_s=wanted.start_timeout_s)
    process.start()
    gateway = rooms.settings.gateway
    return LlamaEngine(
        model,
        process=process,
        store=rooms.store,
        block_tokens=rooms.settings.kv.block_tokens,
        max_waiting=gateway.max_in_flight,
        first_byte_timeout_s=gateway.first_byte_timeout_s,
        idle_timeout_s=gateway.idle_timeout_s,
    )
