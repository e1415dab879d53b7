"""`harm.py` on vLLM: one real server on the processor with our plug-in and a disk tier, `nightfill serve` before it.

A server elsewhere cannot be frozen: a live request waits for the engine's running step at most, after which a fill that
was cancelled is gone. So the size of a slice is what it costs; the adaptive one is a tenth of the live time to first
token long, if the store's blocks allow. The scheduler class needs no cancelling: it leaves fills out of steps that live
requests want, so that a slice is a step of its own, and the worker may go on whatever the load.

Fills are counted by the blocks that arrive in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from _harm import Bench, measure, say
from _vllm import VllmServer, model
from nightfill.bench.client import Client, Target
from nightfill.cli.server_process import children, command_line, server_process
from nightfill.config import ByteSize, Duration, EngineSettings, KvSettings, Settings, SleepSettings, TierSettings
from nightfill.engines.vllm.args import Wanted, launch, plain
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from nightfill.cli.server_process import ServerProcess
    from nightfill.state.sqlite import SqliteState

CONTEXTS: Final = 60
OUTPUT_TOKENS: Final = 8
_KV_BYTES: Final = 512 << 20
_BUSY: Final = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSetting:
    """One point of the curve. `slice_tokens` 0: the slice sizes itself."""

    slice_tokens: int = 0
    scheduler: bool = False

    @property
    def sleep(self) -> SleepSettings:
        if self.scheduler:
            # The engine decides step by step: the worker sends long slices, and does not look at the load.
            return SleepSettings(max_live=10_000, quiet_s=Duration(0), min_slice_tokens=2048, max_slice_tokens=2048)
        if self.slice_tokens:
            return SleepSettings(min_slice_tokens=self.slice_tokens, max_slice_tokens=self.slice_tokens)
        return SleepSettings()

    @property
    def stopped_by(self) -> str:
        return "the scheduler class" if self.scheduler else "cancelling"


CURVE: Final = (
    *(VllmSetting(slice_tokens=size) for size in (128, 256, 512, 1024, 2048)),
    *(VllmSetting(slice_tokens=size, scheduler=True) for size in (128, 256)),
)


class VllmBench(Bench):
    """The engine serves live requests and fills alike; stopped is the worker, and what it asked for runs out."""

    def __init__(
        self,
        vllm: VllmServer,
        server: ServerProcess,
        state: SqliteState,
        client: Client,
        *,
        kv: KvSettings,
        prompt_tokens: int,
    ) -> None:
        super().__init__(client, state, prompt_tokens=prompt_tokens)
        self._vllm = vllm
        self._server = server
        self._kv = kv

    @contextlib.asynccontextmanager
    async def without_fill(self) -> AsyncIterator[None]:
        workers = [pid for pid in children(self._server.process.pid) if b"--handed-over" in command_line(pid)]
        assert workers, "no worker is running"
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            await self._idle()
            yield
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)

    async def _idle(self) -> None:
        """Wait until the engine has ended what the worker sent."""
        async with asyncio.timeout(_WITHIN_S):
            while any([await asyncio.to_thread(self._vllm.metric, name) for name in _BUSY]):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.1)

    async def filled_tokens(self) -> int:
        return await asyncio.to_thread(self._stored_tokens)

    def _stored_tokens(self) -> int:
        return self._kv.block_tokens * sum(1 for _ in Path(self._kv.tiers[0].path).rglob("*.kv"))


def settings_of(setting: VllmSetting, folder: Path, *, url: str) -> Settings:
    """For both sides: the server's command line, and `nightfill serve`."""
    tier = TierSettings(kind="disk", path=str(folder / "kv"), max_bytes=ByteSize(8 << 30))
    return Settings(
        engines=(EngineSettings(name="v0", kind="vllm", url=url),),
        kv=KvSettings(tiers=(tier,)),
        sleep=setting.sleep,
    )


@contextlib.contextmanager
def vllm_server(setting: VllmSetting, folder: Path, size: str) -> Any:
    """A server as `nightfill vllm-args` says."""
    server = VllmServer(folder / "vllm", model=model(size), name=size, kv_cache_bytes=_KV_BYTES)
    settings = settings_of(setting, folder, url=server.url)
    wanted = Wanted(
        data_dir=folder,
        model="-",
        cpu=True,
        host_bytes=_KV_BYTES,
        kv_cache_bytes=_KV_BYTES,
        idle_slice_tokens=setting.slice_tokens if setting.scheduler else 0,
    )
    argv = launch(settings, settings.engines[0], wanted).argv
    server.command += argv[argv.index("--tensor-parallel-size") :]
    try:
        yield server.start(), settings
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def bench(setting: VllmSetting, options: argparse.Namespace) -> AsyncIterator[VllmBench]:
    """A server with this setting, and enough contexts to fill."""
    folder = Path(tempfile.mkdtemp(prefix="nightfill-harm-"))
    try:
        with vllm_server(setting, folder, options.size) as (vllm, settings):
            config = folder / "settings.yaml"
            config.write_bytes(msgspec.json.encode(plain(settings)))
            async with (
                server_process([], data_dir=folder / "data", environ={"NIGHTFILL_CONFIG": str(config)}) as server,
                open_state(folder / "data" / "state.db") as state,
                Client(Target(url=server.url, model=server.model, max_tokens=OUTPUT_TOKENS)) as client,
            ):
                run = VllmBench(vllm, server, state, client, kv=settings.kv, prompt_tokens=options.prompt_tokens)
                await run.put_contexts(CONTEXTS, options.context_tokens)
                deadline_s = time.monotonic() + _WITHIN_S
                while not await run.filled_tokens():
                    assert time.monotonic() < deadline_s, "nothing is filled"
                    await asyncio.sleep(0.2)
                yield run
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def point(setting: VllmSetting, options: argparse.Namespace, *, pairs: int, segment_s: float) -> dict[str, Any]:
    """Start a server, measure, end it."""
    say(f"{setting}: starting")
    async with bench(setting, options) as run:
        found = await measure(run, pairs=pairs, segment_s=segment_s)
    return {
        "model": options.size,
        "slice_tokens": setting.slice_tokens,
        "stopped_by": setting.stopped_by,
        **found,
    }
