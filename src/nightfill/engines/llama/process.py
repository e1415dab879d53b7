"""One llama.cpp child process: started, watched, started again when it ends, frozen and thawed, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import secrets
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.engines.backoff import BackoffPolicy, GiveUp, after_exit
from nightfill.engines.llama.child_config import ENVIRONMENT, Armed, ChildConfig, Listening
from nightfill.engines.llama.last_words import LastWords
from nightfill.errors import EngineStart, EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

CHILD: Final = (sys.executable, "-m", "nightfill.engines.llama.child")
_STOP_S: Final = 3.0
"""For a child to end after SIGTERM; then SIGKILL."""
_LEAST_WAIT_S: Final = 0.05


class State(enum.Enum):
    """What the process is doing."""

    STARTING = enum.auto()
    READY = enum.auto()
    BACKOFF = enum.auto()
    """It ended, and will be started again."""
    STOPPED = enum.auto()
    """Not started yet, or closed."""
    FAILED = enum.auto()
    """It ended several times without ever being ready: not tried again."""


class LlamaProcess:
    """Owns one child at a time, and the task that starts the next one when it ends.

    Use it in one event loop, in the thread in which that loop ends last: Linux kills the child with the thread that
    started it. `freeze` and `thaw` may be called at any time, also while no child runs; the wish outlives a restart.
    """

    def __init__(
        self,
        config: ChildConfig,
        *,
        name: str,
        policy: BackoffPolicy | None = None,
        start_timeout_s: float = 300.0,
        command: tuple[str, ...] = CHILD,
    ) -> None:
        """`name` is the engine's, for messages. `config.api_key` and `config.parent_pid` are filled in here."""
        self.name = name
        self.api_key: Final = secrets.token_urlsafe(32)
        """Constant over restarts."""
        self.state = State.STOPPED
        self.generation = 0
        """Counts the children started: a slot's content belongs to one generation."""
        self._config = msgspec.structs.replace(config, api_key=self.api_key, parent_pid=os.getpid())
        self.slots: Final = config.n_parallel
        self.streams = _streams(config)
        """Runs of KV cells: slot files are for servers with as many."""
        self._command = command
        self._policy = policy or BackoffPolicy()
        self._start_timeout_s = start_timeout_s
        self._words = LastWords()
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._child: _Child | None = None
        self._port = 0
        self._frozen_since_s: float | None = None
        self._frozen_before_s = 0.0

    def start(self) -> None:
        """Begin; returns at once. Also after `FAILED`, to try again. Nothing if it is running."""
        if self._supervisor is None or self._supervisor.done():
            self._become(State.STARTING)
            self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.name}")

    async def ready(self, timeout_s: float) -> None:
        """Wait until it answers on `url`.

        Raises EngineStart with the child's last words if it cannot be started, EngineTimeout after `timeout_s` seconds,
        EngineUnavailable if it is stopped.
        """
        settled = (State.READY, State.FAILED, State.STOPPED)
        await self.until(lambda: self.state in settled, timeout_s)
        if self.state is State.FAILED:
            raise EngineStart(f"could not be started: {self.last_words}", engine=self.name)
        if self.state is State.STOPPED:
            raise EngineUnavailable("is stopped", engine=self.name)

    async def until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `holds()`, asked at each change of state. Raises EngineTimeout."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    await self._changed.wait()
        except TimeoutError as error:
            message = f"{self.state.name.lower()} for over {timeout_s:g} s; last words: {self.last_words or 'none'}"
            raise EngineTimeout(message, engine=self.name) from error

    @property
    def url(self) -> str:
        """Base address. Raises EngineUnavailable unless ready."""
        if self.state is not State.READY:
            raise EngineUnavailable(f"is {self.state.name.lower()}", engine=self.name)
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """The running child's, if there is one."""
        return self._child.process.pid if self._child is not None else None

    @property
    def alive(self) -> bool:
        """Whether a child runs now, ready or not, frozen or not."""
        return self._child is not None and self._child.process.returncode is None

    @property
    def last_words(self) -> str:
        """The end of what the children said on standard error, and how they ended; no request's text."""
        return self._words.tail()

    @property
    def frozen(self) -> bool:
        """Whether it is to stand still now."""
        return self._frozen_since_s is not None

    def clock(self) -> float:
        """Monotonic seconds that do not count while frozen: for deadlines, and for the engine's own time."""
        now_s = time.monotonic() if self._frozen_since_s is None else self._frozen_since_s
        return now_s - self._frozen_before_s

    def freeze(self) -> None:
        """Take the processor away at once (SIGSTOP). Idempotent."""
        if self._frozen_since_s is None:
            self._frozen_since_s = time.monotonic()
            self._apply_freeze()

    def thaw(self) -> None:
        """Give it back. Idempotent."""
        if self._frozen_since_s is not None:
            self._frozen_before_s += time.monotonic() - self._frozen_since_s
            self._frozen_since_s = None
            self._apply_freeze()

    async def aclose(self) -> None:
        """End the child, by force after 3 seconds, and reap it. Idempotent."""
        self.thaw()
        if self._supervisor is not None:
            if not self._supervisor.cancelling():  # a second cancellation would cut the ending of the child short
                self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        self._become(State.STOPPED)

    async def restart(self, config: ChildConfig) -> None:
        """End the child and start one with another configuration, of as many slots."""
        assert config.n_parallel == self.slots
        await self.aclose()
        self._config = msgspec.structs.replace(config, api_key=self.api_key, parent_pid=os.getpid())
        self.streams = _streams(config)
        self.start()

    def _become(self, state: State) -> None:
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _apply_freeze(self) -> None:
        # A child that is not armed yet would be left behind, stopped for ever, if we were killed now.
        if self._child is not None and self._child.armed:
            self._child.send(signal.SIGSTOP if self.frozen else signal.SIGCONT)

    async def _supervise(self) -> None:
        try:
            await self._keep_running()
        except Exception as error:
            logger.exception("engine %s: supervision failed", self.name)
            self._words.note(f"supervision failed: {type(error).__name__}")
        self._become(State.FAILED)

    async def _keep_running(self) -> None:
        """Until it is given up, or cancelled."""
        exits, ever_ready = 0, False
        while True:
            ready_s = await self._run_once()
            ever_ready = ever_ready or ready_s > 0
            match after_exit(exits=exits, ready_s=ready_s, ever_ready=ever_ready, policy=self._policy):
                case GiveUp():
                    logger.error("engine %s: cannot be started: %s", self.name, self.last_words)
                    return
                case verdict:
                    exits = verdict.exits
                    logger.warning(
                        "engine %s: starts again in %.2g s: %s", self.name, verdict.delay_s, self._words.tail(2)
                    )
                    await asyncio.sleep(verdict.delay_s)

    async def _run_once(self) -> float:
        """Start a child and stay until it has ended; the seconds that it was ready."""
        self._words.begin()
        try:
            child = await _Child.spawn(self._command)
        except OSError as error:
            self._words.note(f"cannot start a process: {error.strerror}")
            return 0.0
        self._child = child
        self.generation += 1
        self._become(State.STARTING)
        listener = asyncio.create_task(self._listen(child), name=f"standard error of {self.name}")
        ready_at_s: float | None = None
        try:
            if await self._bring_up(child):
                ready_at_s = time.monotonic()
                self._words.serving()
                self._become(State.READY)
                await child.process.wait()
        finally:
            self._become(State.BACKOFF)
            await child.end()
            await asyncio.wait({listener}, timeout=_STOP_S)  # it ends with the pipe
            listener.cancel()
            self._child = None
            child.release()
        self._words.note(f"ended with status {child.process.returncode}")
        return 0.0 if ready_at_s is None else time.monotonic() - ready_at_s

    async def _bring_up(self, child: _Child) -> bool:
        """Whether it came to listen; the time that it was frozen does not count."""
        deadline_s = self.clock() + self._start_timeout_s
        child.tell(msgspec.json.encode(self._config) + b"\n")
        if not isinstance(await self._line(child, deadline_s), Armed):
            return False
        child.armed = True
        if self.frozen:
            self._apply_freeze()
        line = await self._line(child, deadline_s)
        if not isinstance(line, Listening):
            return False
        self._port = line.port
        return True

    async def _line(self, child: _Child, deadline_s: float) -> Armed | Listening | None:
        reading = asyncio.create_task(child.read_line(), name=f"standard output of {self.name}")
        try:
            while not reading.done() and (left_s := deadline_s - self.clock()) > 0:
                await asyncio.wait({reading}, timeout=max(left_s, _LEAST_WAIT_S))
            if not reading.done():
                self._words.note(f"not up after {self._start_timeout_s:g} s")
                return None
            line = reading.result()
            return msgspec.json.decode(line, type=Armed | Listening) if line else None
        except (msgspec.DecodeError, ValueError):
            self._words.note("said something else than its port")
            return None
        finally:
            reading.cancel()

    async def _listen(self, child: _Child) -> None:
        while data := await child.read_errors():
            self._words.feed(data)


def _streams(config: ChildConfig) -> int:
    return 1 if config.kv_unified else config.n_parallel


class _Child:
    """A running child, and a handle of it that the kernel never gives to another process."""

    def __init__(self, process: asyncio.subprocess.Process, pidfd: int) -> None:
        self.process = process
        self.armed = False
        self._pidfd = pidfd

    @classmethod
    async def spawn(cls, command: tuple[str, ...]) -> _Child:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, **ENVIRONMENT},
        )
        try:
            return cls(process, os.pidfd_open(process.pid))
        except OSError:
            process.kill()
            await process.wait()
            raise

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)

    async def read_line(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readline()

    async def read_errors(self) -> bytes:
        assert self.process.stderr is not None
        return await self.process.stderr.read(65536)

    def send(self, signum: signal.Signals) -> None:
        """Nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signum)

    async def end(self) -> None:
        """End it in order, else by force."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)  # a stopped process takes no other signal than SIGKILL
        try:
            async with asyncio.timeout(_STOP_S):
                await self.process.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.process.wait()
        except asyncio.CancelledError:
            self.send(signal.SIGKILL)
            raise

    def release(self) -> None:
        os.close(self._pidfd)
