"""The engines that answer requests, starting; those with a device under one lifecycle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nightfill.cli.engine_room import (
    described,
    engines_for,
    engines_to_serve,
    first_described,
    make_embedded,
    make_launched,
    make_split,
    make_vllm,
)
from nightfill.cli.lifecycle_room import LifecycleRoom
from nightfill.engines.adapted import AdaptedEngine
from nightfill.engines.lifecycle.lifecycle import Managed
from nightfill.engines.lifecycle.sleeping import SleepingEngine
from nightfill.engines.llama.sleeper import LlamaSleeper
from nightfill.engines.vllm.sleeper import VllmSleeper
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AsyncExitStack

    from nightfill.cli.rooms import Rooms
    from nightfill.config import EngineSettings
    from nightfill.engines.adapted import Adapter
    from nightfill.engines.engine import Description, Engine
    from nightfill.engines.lifecycle.sleeper import Sleeper
    from nightfill.engines.llama.engine import LlamaEngine
    from nightfill.engines.vllm.engine import VllmEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One engine that answers requests."""

    settings: EngineSettings
    engine: Engine
    """What is asked."""
    own: bool
    """Whether nightfill started it, so that it must come up."""
    llama: LlamaEngine | None = None
    """The embedded engine behind it, where it is one."""
    sleeper: Sleeper | None = None
    """Where its model may sleep."""
    adapters: tuple[Adapter, ...] = ()

    @property
    def engines(self) -> list[Engine]:
        """What is asked, and its adapters as engines."""
        return [self.engine, *(AdaptedEngine(self.engine, adapter) for adapter in self.adapters)]


async def open_served(rooms: Rooms, stack: AsyncExitStack) -> tuple[list[Served], LifecycleRoom | None]:
    """All engines that answer requests, and who puts their models to sleep, where one may; `stack` closes everything.

    Raises BadSetting.
    """
    prefill = [await make_vllm(one, rooms) for one in engines_for(rooms.settings, "prefill")]
    for helper in prefill:
        stack.push_async_callback(helper.aclose)
    made = []
    for one in engines_to_serve(rooms.settings):
        found = await _made(one, rooms, prefill)
        stack.push_async_callback(found.engine.aclose)
        made.append(found)
    managed = [
        Managed(name=one.settings.name, device=one.settings.device, sleeper=one.sleeper, pinned=one.settings.pinned)
        for one in made
        if one.sleeper is not None
    ]
    if not managed:
        return made, None
    room = LifecycleRoom(managed, rooms.settings)
    await stack.enter_async_context(room.lifecycle)
    return [_put_to_bed(one, room) for one in made], room


async def descriptions_of(served: Sequence[Served]) -> list[Description]:
    """What those of our own say of themselves, each loaded once in turn, and its adapters after it; where there are
    none, what the first server elsewhere does that is up. Raises EngineError when one of our own does not come up, or
    none of the servers; BadSetting for names that are not told apart.
    """
    own = [one for one in served if one.own]
    if own:
        said = [
            await described(engine, one.settings.start_timeout_s, comes_up=one.sleeper is None)
            for one in own
            for engine in one.engines
        ]
        _told_apart(own, said)
        return said
    return [await first_described([(one.engine, one.settings.start_timeout_s) for one in served])]


def _told_apart(own: Sequence[Served], said: Sequence[Description]) -> None:
    """Raises BadSetting where an adapter is called as a model calls itself: it would get the model's answers."""
    models = {one.model for one in said if one.engine in {served.settings.name for served in own}}
    for served in own:
        for adapter in served.adapters:
            if adapter.name in models:
                raise BadSetting(
                    f"engines.adapters: {adapter.name!r} is what a model calls itself; give either another name",
                    param="engines.adapters",
                )


async def _made(wanted: EngineSettings, rooms: Rooms, prefill: Sequence[VllmEngine]) -> Served:
    if wanted.kind == "llama":
        llama, process = await make_embedded(wanted, rooms)
        if not wanted.device:
            process.start()
            return Served(settings=wanted, engine=llama, own=True, llama=llama, adapters=llama.adapters)
        sleeper = LlamaSleeper(llama, process)
        return Served(settings=wanted, engine=llama, own=True, llama=llama, sleeper=sleeper, adapters=llama.adapters)
    if not wanted.url:
        engine, server = await make_launched(wanted, rooms)
        timeout_s = float(wanted.start_timeout_s)
        waker = VllmSleeper(server, cpu=wanted.launch.cpu, start_timeout_s=timeout_s) if wanted.device else None
        return Served(settings=wanted, engine=engine, own=True, sleeper=waker, adapters=engine.adapters)
    if prefill and "decode" in wanted.roles:
        return Served(settings=wanted, engine=await make_split(prefill, wanted, rooms), own=False)
    elsewhere = await make_vllm(wanted, rooms)
    return Served(settings=wanted, engine=elsewhere, own=False, adapters=elsewhere.adapters)


def at_work(adapter: Adapter | None, engine: Engine) -> Engine:
    """An engine that answers requests, under the adapter if any, for work in the background that begins now."""
    below = engine.at_work() if isinstance(engine, SleepingEngine) else engine
    return below if adapter is None else AdaptedEngine(below, adapter)


def _put_to_bed(one: Served, room: LifecycleRoom) -> Served:
    if one.sleeper is None:
        return one
    engine = SleepingEngine(one.engine, room.lifecycle, name=one.settings.name)
    return replace(one, engine=engine)
