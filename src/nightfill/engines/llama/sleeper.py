"""Puts a model in a llama.cpp child to sleep, and wakes it.

Level 1 keeps the process, without weights and KV: a few tens of megabytes, and a fraction of a second to wake as long
as the page cache has the model's file. Level 2 ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nightfill.engines.lifecycle.sleeper import Footprint, Woken
from nightfill.engines.llama.api import LlamaApi
from nightfill.engines.supervised import State
from nightfill.errors import EngineError, KvError, WokeWrong

if TYPE_CHECKING:
    from nightfill.engines.engine import Sampled
    from nightfill.engines.lifecycle.sleeper import Level
    from nightfill.engines.llama.engine import LlamaEngine
    from nightfill.engines.llama.process import LlamaProcess

_LOG: Final = logging.getLogger(__name__)
_LEVELS: Final[frozenset[Level]] = frozenset({1, 2})
_PROBE: Final = (1,)
"""A token that every vocabulary has; one, and one in answer, as each costs time at every wake. The likeliest
alternatives to the answer are compared too, which tells models apart as well as more words would.
"""
_APART_NATS: Final = 0.1
"""Between log-probabilities of the same token, where a device does not round the same way each time."""
_KEEP_S: Final = 20.0


def unlike(before: Sampled, now: Sampled) -> str:
    """How two greedy continuations of the same prompt differ, empty where they are one model's: the same tokens with
    the same log-probabilities, up to where two tokens were nearly alike and rounding may have chosen.
    """
    for place, (theirs, ours) in enumerate(zip(before.tops, now.tops, strict=True)):
        both = theirs.keys() & ours.keys()
        if len(both) <= len(theirs) // 2:
            return f"other tokens are likely at place {place}"
        apart = max(abs(theirs[token] - ours[token]) for token in both)
        if apart > _APART_NATS:
            return f"log-probabilities at place {place} are {apart:.2g} apart"
        was, is_now = before.tokens[place], now.tokens[place]
        if was != is_now:
            nearly = is_now in theirs and theirs[was] - theirs[is_now] < _APART_NATS
            return "" if nearly else f"another token at place {place}"
    return ""


class LlamaSleeper:
    """Implements `engines.lifecycle.sleeper.Sleeper`. For one event loop.

    An `LlamaEngine` asks the same child, and does not have to know whether it slept: where its slots' KV was, it loads
    from the store.
    """

    def __init__(self, engine: LlamaEngine, process: LlamaProcess) -> None:
        """`process` is the engine's, made with `again=False`: one that ends does not take memory again unasked."""
        self._engine = engine
        self._process = process
        self._api = LlamaApi.of(process)
        self._known: Sampled | None = None

    @property
    def levels(self) -> frozenset[Level]:
        """Both."""
        return _LEVELS

    async def wake(self) -> Woken:
        """Load the model, in a new process if there is none. Raises EngineError with the child's last words."""
        process, began_s = self._process, time.monotonic()
        if process.state is State.ASLEEP:
            await process.load()
            return Woken(seconds={"load": time.monotonic() - began_s})
        if process.state not in (State.STARTING, State.READY):
            await process.aclose()
            process.start()
        await process.ready(process.start_timeout_s)
        armed_s = max(process.armed_s, began_s)
        return Woken(seconds={"process": armed_s - began_s, "load": time.monotonic() - armed_s})

    async def warm(self) -> None:
        """Continue one token by one, and compare that with the first time. Raises EngineError, WokeWrong."""
        now = await self._api.sample(_PROBE, slot=0, max_tokens=1)
        if self._known is None:
            self._known = now
        elif difference := unlike(self._known, now):
            raise WokeWrong(f"is not the model that it was: {difference}", engine=self._process.name)

    async def keep(self) -> None:
        """See `LlamaEngine.keep`; at most 20 seconds of it. What cannot be kept is computed again, and logged."""
        try:
            async with asyncio.timeout(_KEEP_S):
                await self._engine.keep()
        except (EngineError, KvError, TimeoutError) as exc:
            _LOG.warning("engine %s: not all of its KV could be kept: %s", self._process.name, exc)

    async def sleep(self, level: Level) -> None:
        """Let go of the model. A child that does not within seconds is ended, which is level 2."""
        if level == 1 and self._process.state is State.READY:
            try:
                # llama.cpp never ends if it is told to before its loop has begun, which an answer shows.
                await self._api.slots()
                self._let_go()
                await self._process.release()
            except EngineError as exc:
                _LOG.warning("%s; ended instead", exc)
            else:
                return
        self._let_go()
        await self._process.aclose()

    async def stop(self) -> None:
        """End the process."""
        self._let_go()
        await self._process.aclose()

    async def footprint(self) -> Footprint:
        """The child's resident memory. The weights are part of it though they are pages of a file, which the system
        could take back: a model that computes needs all of them. What a graphics processor holds is not seen.
        """
        pid = self._process.pid
        return Footprint(device_bytes=resident_bytes(pid) if pid is not None else 0)

    async def ended(self) -> str:
        """Wait until the process ends by itself; its last words."""
        await self._process.until(lambda: self._process.state is State.FAILED, None)
        return self._process.last_words

    def _let_go(self) -> None:
        self._api.drop_idle()
        self._engine.let_go()


def resident_bytes(pid: int) -> int:
    """Anonymous and file pages of a process that are in memory, shared ones included; 0 if it is gone. As the kernel
    counts them, to a megabyte or so: adding up its mappings (`smaps_rollup`) would hold up a model that just woke.
    """
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
