"""Puts a vLLM server of ours to sleep, and wakes it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import TYPE_CHECKING, Final

from nightfill.engines.lifecycle.sleeper import Footprint, Woken
from nightfill.engines.supervised import State
from nightfill.engines.vllm.api import VllmApi
from nightfill.engines.vllm.memory import device_bytes, device_listing, host_bytes
from nightfill.engines.vllm.tree import descendants
from nightfill.engines.vllm.wire import Wish
from nightfill.errors import EngineError, WokeWrong

if TYPE_CHECKING:
    from nightfill.engines.lifecycle.sleeper import Level
    from nightfill.engines.vllm.server import VllmServer

_LOG: Final = logging.getLogger(__name__)
_PROBE: Final = tuple(range(1, 33))
"""Token ids that every vocabulary has."""
_PROBE_TOKENS: Final = 8
_RESET_TRIES: Final = 20
_RESET_S: Final = 0.25
_LEVELS: Final[frozenset[Level]] = frozenset({1, 2})


class VllmSleeper:
    """Implements `engines.lifecycle.sleeper.Sleeper`. For one event loop.

    While the server is asleep `VllmServer.url` raises: a request would hang until it wakes, and no client of ours gets
    to send one. What asks here goes around that.
    """

    def __init__(self, server: VllmServer, *, cpu: bool, start_timeout_s: float) -> None:
        """`server` must not start again by itself (`again=False`): a model that is to sleep would take memory unasked.

        `cpu`: its device is the host's memory.
        """
        self._server = server
        self._cpu = cpu
        self._start_timeout_s = start_timeout_s
        self._api = self._client()
        self._told = False
        """That its memory cannot be measured."""
        self._level: Level | None = None
        self._up: int | None = None
        """Generation of the process that is to run; None when none is."""
        self._continuation: tuple[int, ...] = ()
        """Of the probe, by the process that runs, when its weights had been read for the first time."""

    @property
    def levels(self) -> frozenset[Level]:
        """Both."""
        return _LEVELS

    async def wake(self) -> Woken:
        """Start it, or have it take its memory back. Phases: `process`, or `load` and, after level 2, `reset`."""
        began_s = time.monotonic()
        if not self._runs():
            await self.stop()
            self._continuation = ()
            self._server.start()
            await self._server.ready(self._start_timeout_s)
            self._up = self._server.generation
            return Woken(seconds={"process": time.monotonic() - began_s})
        seconds: dict[str, float] = {}
        if self._level == 1:
            await self._awake()
            seconds = {"load": time.monotonic() - began_s}
        elif self._level == 2:
            # The weights come into memory that is taken before that of the KV cache: both at once may not fit.
            await self._api.wake_up("weights")
            await self._api.reload_weights()
            await self._awake("kv_cache")
            loaded_s = time.monotonic()
            await self._forget()
            seconds = {"load": loaded_s - began_s, "reset": time.monotonic() - loaded_s}
        self._level = None
        self._server.wake_up()
        return Woken(seconds=seconds)

    async def _awake(self, tag: str = "") -> None:
        if not await self._api.wake_up(tag) or await self._api.is_sleeping():
            raise EngineError("still sleeps after it was woken", engine=self._server.name)

    async def _forget(self) -> None:
        """KV of the weights before must not be used. The shared store is keyed by what they are, and stays."""
        for _ in range(_RESET_TRIES):
            if await self._api.reset_prefix_cache():
                return
            await asyncio.sleep(_RESET_S)  # a transfer still uses a block
        raise EngineError("does not reset its prefix cache", engine=self._server.name)

    async def warm(self) -> None:
        """Continue a probe that nobody else's KV can serve. Weights that came back wrong continue it otherwise than
        those that the same process had read at its start.
        """
        model = (await self._api.models())[0].id
        sampled, _ = await self._api.sample(
            _PROBE,
            model=model,
            salt=secrets.token_bytes(32),
            wish=Wish(cold=True, store=False),
            max_tokens=_PROBE_TOKENS,
        )
        if not self._continuation:
            self._continuation = sampled.tokens
        elif sampled.tokens != self._continuation:
            raise WokeWrong("continues a probe otherwise than before it slept", engine=self._server.name)

    async def keep(self) -> None:
        """Nothing: a fill is not over before its blocks are in the store, and vLLM hands over what it had begun to
        copy out when it falls asleep.
        """

    async def sleep(self, level: Level) -> None:
        """From level 1 to level 2 by ending the process: vLLM can drop its weights from the device only."""
        if self._level == level:
            return
        if self._level is not None:
            await self.stop()
            return
        self._server.fall_asleep()
        await self._api.sleep(level)
        if not await self._api.is_sleeping():
            raise EngineError("does not sleep after it was told to", engine=self._server.name)
        self._level = level

    async def stop(self) -> None:
        """End it and all its processes, by force if need be."""
        self._up, self._level = None, None
        await self._api.aclose()
        self._api = self._client()
        await self._server.aclose()

    async def footprint(self) -> Footprint:
        """Of all its processes; 0 of a GPU, which makes it fill the device, where there is no telling."""
        pid = self._server.pid
        if pid is None:
            return Footprint(device_bytes=0)
        pids = await asyncio.to_thread(descendants, pid)
        held = await asyncio.to_thread(host_bytes, pids)
        if self._cpu:
            return Footprint(device_bytes=held)
        try:
            found = device_bytes(await device_listing(self._server.name), pids, engine=self._server.name)
        except EngineError as error:
            if not self._told:
                _LOG.warning("%s; its model is taken to fill its device", error)
            self._told, found = True, 0
        return Footprint(device_bytes=found, host_bytes=held)

    async def ended(self) -> str:
        """Its last words, once a process that was up has fallen."""
        await self._server.until(lambda: self._up is not None and self._server.state is State.FAILED, None)
        return self._server.last_words

    def _client(self) -> VllmApi:
        server = self._server
        return VllmApi(lambda: server.base, engine=server.name, api_key=server.api_key)

    def _runs(self) -> bool:
        return self._server.state in (State.READY, State.ASLEEP) and self._server.generation == self._up
