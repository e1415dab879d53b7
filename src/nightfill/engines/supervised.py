"""An engine's process: started, watched, started again when it ends, stopped. A subclass knows what kind it is."""

from __future__ import annotations

import abc
import asyncio
import enum
import logging
import time
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from nightfill.engines.backoff import BackoffPolicy, GiveUp, after_exit
from nightfill.errors import EngineStart, EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightfill.engines.last_words import LastWords

logger = logging.getLogger(__name__)

_SILENT_S: Final = 3.0
"""For the rest of what a process said, once it has ended."""


class State(enum.Enum):
    """What the process is doing."""

    STARTING = enum.auto()
    READY = enum.auto()
    ASLEEP = enum.auto()
    """It runs without its model."""
    BACKOFF = enum.auto()
    """It ended, and will be started again."""
    STOPPED = enum.auto()
    """Not started yet, or closed."""
    FAILED = enum.auto()
    """It ended, and is not started again: it was never ready in several attempts, or somebody else decides that."""


class Child(Protocol):
    """A running process."""

    process: asyncio.subprocess.Process

    async def end(self) -> None:
        """End it in order, else by force, and reap it. Cancelled, it still ends."""

    def release(self) -> None:
        """It has ended: let go of what names it."""


ChildT = TypeVar("ChildT", bound=Child)


class Supervised(abc.ABC, Generic[ChildT]):
    """Owns one process at a time, and the task that starts the next one when it ends.

    Use it in one event loop, in the thread in which that loop ends last: Linux may kill a child with the thread that
    started it.
    """

    def __init__(self, name: str, *, words: LastWords, policy: BackoffPolicy | None = None, again: bool = True) -> None:
        """`name` is the engine's, for messages. Without `again` it is not started again by itself."""
        self.name = name
        self.state = State.STOPPED
        self.generation = 0
        """Counts the loads of the model: what one holds belongs to one generation."""
        self._policy = policy or BackoffPolicy()
        self._again = again
        self._words = words
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._child: ChildT | None = None

    @abc.abstractmethod
    async def _spawn(self) -> ChildT:
        """Start a process. Raises OSError."""

    @abc.abstractmethod
    async def _bring_up(self, child: ChildT) -> bool:
        """Whether it came to answer. Bounded in time; notes in the last words why not, unless the process said it."""

    @abc.abstractmethod
    async def _listen(self, child: ChildT) -> None:
        """Read what it says until it ends."""

    def start(self) -> None:
        """Begin; returns at once. Also after `FAILED`, to try again. Nothing if it is running."""
        if self._supervisor is None or self._supervisor.done():
            self._become(State.STARTING)
            self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.name}")

    async def ready(self, timeout_s: float) -> None:
        """Wait until it answers.

        Raises EngineStart with the process's last words if it cannot be started, EngineTimeout after `timeout_s`
        seconds, EngineUnavailable if it is stopped or asleep.
        """
        settled = (State.READY, State.FAILED, State.STOPPED, State.ASLEEP)
        await self.until(lambda: self.state in settled, timeout_s)
        if self.state is State.FAILED:
            raise EngineStart(f"could not be started: {self.last_words}", engine=self.name)
        if self.state is not State.READY:
            raise EngineUnavailable(f"is {self.state.name.lower()}", engine=self.name)

    async def until(self, holds: Callable[[], bool], timeout_s: float | None) -> None:
        """Wait until `holds()`, asked at each change of state. Raises EngineTimeout."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    await self._changed.wait()
        except TimeoutError as error:
            message = f"{self.state.name.lower()} for over {timeout_s:g} s; last words: {self.last_words or 'none'}"
            raise EngineTimeout(message, engine=self.name) from error

    @property
    def pid(self) -> int | None:
        """The running process's, if there is one."""
        return self._child.process.pid if self._child is not None else None

    @property
    def alive(self) -> bool:
        """Whether a process runs now, ready or not."""
        return self._child is not None and self._child.process.returncode is None

    @property
    def last_words(self) -> str:
        """The end of what the processes said, and how they ended; no request's text."""
        return self._words.tail()

    async def aclose(self) -> None:
        """End the process, by force if need be, and reap it. Idempotent."""
        if self._supervisor is not None:
            if not self._supervisor.cancelling():  # a second cancellation would cut the ending of the child short
                self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        self._become(State.STOPPED)

    def _become(self, state: State) -> None:
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

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
            if not self._again:
                return
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
        """Start a process and stay until it has ended; the seconds that it was ready."""
        self._words.begin()
        try:
            child = await self._spawn()
        except OSError as error:
            self._words.note(f"cannot start a process: {error.strerror}")
            return 0.0
        self._child = child
        self.generation += 1
        self._become(State.STARTING)
        listener = asyncio.create_task(self._listen(child), name=f"what {self.name} says")
        ready_at_s: float | None = None
        try:
            if await self._bring_up(child):
                ready_at_s = time.monotonic()
                self._words.serving()
                self._become(State.READY)
                await child.process.wait()
        finally:
            self._become(State.BACKOFF)
            ending = asyncio.create_task(self._end(child, listener), name=f"end of {self.name}")
            try:
                await asyncio.shield(ending)
            finally:
                await asyncio.wait({ending})  # who closes meanwhile does not leave half of it behind
        self._words.note(f"ended with status {child.process.returncode}")
        return 0.0 if ready_at_s is None else time.monotonic() - ready_at_s

    async def _end(self, child: ChildT, listener: asyncio.Task[None]) -> None:
        try:
            await child.end()
            await asyncio.wait({listener}, timeout=_SILENT_S)  # it ends with the pipe
        finally:
            listener.cancel()
            self._child = None
            child.release()
