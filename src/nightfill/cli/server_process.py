"""A `nightfill serve` of one's own, for the demonstration and for benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from nightfill.engines.upstream import Upstream
from nightfill.errors import EngineError, EngineStart, EngineTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

_STOP_S: Final = 30.0
_CHILD: Final = b"nightfill.engines.llama.child"
_NAME: Final = "nightfill serve"


class _Where(msgspec.Struct):
    url: str
    model: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """A running server."""

    url: str
    model: str
    process: asyncio.subprocess.Process

    def engines(self) -> list[int]:
        """Process ids of its live engines."""
        return [pid for pid in children(self.process.pid) if _CHILD in command_line(pid)]

    async def ready(self, *, within_s: float = 120.0) -> None:
        """Wait until an engine answers. Raises EngineTimeout."""
        upstream = Upstream(self.url, engine=_NAME)
        try:
            async with asyncio.timeout(within_s):
                while not await _is_ready(upstream):  # noqa: ASYNC110 - no event to wait for
                    await asyncio.sleep(0.02)
        except TimeoutError as exc:
            raise EngineTimeout(f"no engine answered within {within_s:g} s", engine=_NAME) from exc
        finally:
            await upstream.aclose()

    async def kill_engine(self) -> None:
        """Kill the live engine (SIGKILL) and wait until the next one answers."""
        before = self.engines()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while not self.engines() or set(self.engines()) & set(before):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        await self.ready()


@contextlib.asynccontextmanager
async def server_process(
    arguments: Sequence[str], *, data_dir: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[ServerProcess]:
    """Start `nightfill serve` with these arguments; stopped in good order when left. It logs to a file in `data_dir`.

    Raises EngineStart with the end of the log when it does not come up.
    """
    log = data_dir / "serve.log"
    with _opened(log) as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nightfill", "--data-dir", str(data_dir), "serve", "--json", "--port", "0"),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environ or {})},
        )
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise EngineStart(f"did not come up:\n{_end_of(log)}", engine=_NAME)
        where = msgspec.json.decode(line, type=_Where)
        yield ServerProcess(url=where.url, model=where.model, process=process)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _opened(log: Path) -> BinaryIO:
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return log.open("ab")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def children(pid: int) -> list[int]:
    """Process ids of the children of a process, of all its threads; empty when it is gone."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def command_line(pid: int) -> bytes:
    """A process's command line; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def _is_ready(upstream: Upstream) -> bool:
    try:
        return (await upstream.request("GET", "/readyz", timeout_s=5)).status == 200
    except EngineError:
        return False
