"""The background worker as a child of `nightfill serve`: started, started again when it dies, stopped in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from nightfill.cli.handover import encode_settings
from nightfill.engines.backoff import BackoffPolicy, GiveUp, after_exit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.config import Settings

_LOG: Final = logging.getLogger(__name__)
_STOP_S: Final = 15.0
"""For the worker to keep what it has computed and hand its lease back; then SIGKILL."""


class WorkerProcess:
    """Use as an asynchronous context manager; it runs inside. The worker ends with us, whatever ends us: it reads the
    end of its standard input as a stop.
    """

    def __init__(self, settings: Settings) -> None:
        self._handed_over = encode_settings(settings)
        self._process: asyncio.subprocess.Process | None = None
        self.exits = 0
        """How often it ended and was started again."""

    @property
    def pid(self) -> int | None:
        """Of the running worker."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[WorkerProcess]:
        """Keep a worker running while inside."""
        supervisor = asyncio.create_task(self._supervise(), name="supervise worker")
        try:
            yield self
        finally:
            supervisor.cancel()
            await asyncio.wait({supervisor})

    async def _supervise(self) -> None:
        policy = BackoffPolicy(max_start_failures=1 << 30)
        exits = 0
        while True:
            began_s = time.monotonic()
            status = await self._run_once()
            self.exits += 1
            ready_s = time.monotonic() - began_s
            verdict = after_exit(exits=exits, ready_s=ready_s, ever_ready=True, policy=policy)
            assert not isinstance(verdict, GiveUp), "a worker is started again for ever"
            exits = verdict.exits
            _LOG.warning("worker ended with status %s; next start in %.2f s", status, verdict.delay_s)
            await asyncio.sleep(verdict.delay_s)

    async def _run_once(self) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nightfill",
            "work",
            "--handed-over",
            stdin=asyncio.subprocess.PIPE,
            env=dict(os.environ),
        )
        self._process = process
        assert process.stdin is not None
        try:
            process.stdin.write(self._handed_over + b"\n")
            return await process.wait()
        finally:
            process.stdin.close()
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            except TimeoutError:
                _LOG.warning("worker did not end within %g s: killed", _STOP_S)
                process.kill()
                await process.wait()
            except asyncio.CancelledError:
                process.kill()
                raise
