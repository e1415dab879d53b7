"""One llama.cpp child process: started, watched, started again when it ends, frozen and thawed, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import sys
import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from nightfill.engines.last_words import LastWords
from nightfill.engines.llama.child_config import ENVIRONMENT, Armed, ChildConfig, Listening, Load, Release, Released
from nightfill.engines.supervised import State, Supervised
from nightfill.errors import EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from nightfill.engines.backoff import BackoffPolicy
    from nightfill.engines.llama.child_config import AdapterFile, Order

LineT = TypeVar("LineT", Armed, Listening, Released)
CHILD: Final = (sys.executable, "-m", "nightfill.engines.llama.child")
# The layers below the server see tokens only; the server itself quotes requests and answers in its errors.
TEXTLESS: Final = re.compile(rb"[\d.]+ E (llama|ggml|gguf|CUDA)\w*: (?!.*grammar)|.*GGML_ASSERT\(|terminate called")
_STOP_S: Final = 3.0
"""For a child to end after SIGTERM; then SIGKILL."""
_RELEASE_S: Final = 5.0
"""For a child to let go of its model. It takes some 20 ms; but llama.cpp may wait for a client, or for itself."""
_LEAST_WAIT_S: Final = 0.05


class LlamaProcess(Supervised["_Child"]):
    """Its child ends with the thread that started it. `freeze` and `thaw` may be called at any time, also while no
    child runs; the wish outlives a restart.
    """

    def __init__(
        self,
        config: ChildConfig,
        *,
        name: str,
        policy: BackoffPolicy | None = None,
        start_timeout_s: float = 300.0,
        command: tuple[str, ...] = CHILD,
        again: bool = True,
    ) -> None:
        """`name` is the engine's, for messages. `config.api_key` and `config.parent_pid` are filled in here. Without
        `again` it is not started again by itself when it ends: for whoever puts it to sleep and wakes it.
        """
        super().__init__(name, words=LastWords(TEXTLESS), policy=policy, again=again)
        self.api_key: Final = secrets.token_urlsafe(32)
        """Constant over restarts."""
        self._config = msgspec.structs.replace(config, api_key=self.api_key, parent_pid=os.getpid())
        self.slots: Final = config.n_parallel
        self.streams = _streams(config)
        """Runs of KV cells: slot files are for servers with as many."""
        self._command = command
        self.start_timeout_s: Final = start_timeout_s
        self._port = 0
        self.armed_s = 0.0
        """When the child that runs was there, before it loaded anything, in monotonic seconds."""
        self.adapters: tuple[str, ...] = ()
        """SHA-256 of the LoRA adapters that the child has, by their ids."""
        self._frozen_since_s: float | None = None
        self._frozen_before_s = 0.0

    @property
    def url(self) -> str:
        """Base address. Raises EngineUnavailable unless ready."""
        if self.state is not State.READY:
            raise EngineUnavailable(f"is {self.state.name.lower()}", engine=self.name)
        return f"http://127.0.0.1:{self._port}"

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
        await super().aclose()

    async def restart(self, config: ChildConfig) -> None:
        """End the child and start one with another configuration, of as many slots."""
        assert config.n_parallel == self.slots
        await self.aclose()
        self._config = msgspec.structs.replace(config, api_key=self.api_key, parent_pid=os.getpid())
        self.streams = _streams(config)
        self.start()

    async def adapt(self, adapters: tuple[AdapterFile, ...]) -> None:
        """`restart` with these LoRA adapters, and else as it is."""
        await self.restart(msgspec.structs.replace(self._config, adapters=adapters))

    async def release(self) -> None:
        """Have the child let go of its model: weights and KV are given back, the process stays. Close the connections
        to it before. Not for one that is started again by itself.

        Raises EngineUnavailable unless it is ready, or when it ends over it; EngineTimeout after 5 seconds. Close it
        then.
        """
        child = self._child
        if child is None or self.state is not State.READY:
            raise EngineUnavailable(f"is {self.state.name.lower()}", engine=self.name)
        assert not self._again, "it would load its model by itself if it ended asleep"
        self._become(State.ASLEEP)
        child.tell(Release())
        await self._answer(child, Released, within_s=_RELEASE_S, what="let go of its model")

    async def load(self) -> None:
        """Have a child that is asleep load its model again, without llama.cpp's warm-up.

        Raises EngineUnavailable with its last words when it cannot, EngineTimeout when it takes longer than a start.
        Close it then.
        """
        child = self._child
        if child is None or self.state is not State.ASLEEP:
            raise EngineUnavailable(f"is {self.state.name.lower()}", engine=self.name)
        self._words.begin()
        self.generation += 1
        self._become(State.STARTING)
        child.tell(Load())
        line = await self._answer(child, Listening, within_s=self.start_timeout_s, what="load its model")
        self._port, self.adapters = line.port, line.adapters
        self._words.serving()
        self._become(State.READY)

    async def _answer(self, child: _Child, wanted: type[LineT], *, within_s: float, what: str) -> LineT:
        line = await self._line(child, self.clock() + within_s, late=f"did not {what} within {within_s:g} s")
        if isinstance(line, wanted):
            return line
        if not child.silent:
            raise EngineTimeout(f"did not {what}: {self.last_words}", engine=self.name)
        await self.until(lambda: self.state is State.FAILED, 2 * _STOP_S)  # by then it is known why
        raise EngineUnavailable(f"ended when it was to {what}: {self.last_words}", engine=self.name)

    def _apply_freeze(self) -> None:
        # A child that is not armed yet would be left behind, stopped for ever, if we were killed now.
        if self._child is not None and self._child.armed:
            self._child.send(signal.SIGSTOP if self.frozen else signal.SIGCONT)

    async def _spawn(self) -> _Child:
        return await _Child.spawn(self._command)

    async def _bring_up(self, child: _Child) -> bool:
        """Whether it came to listen; the time that it was frozen does not count."""
        deadline_s = self.clock() + self.start_timeout_s
        late = f"not up after {self.start_timeout_s:g} s"
        child.tell(self._config)
        if not isinstance(await self._line(child, deadline_s, late=late), Armed):
            return False
        child.armed, self.armed_s = True, time.monotonic()
        if self.frozen:
            self._apply_freeze()
        line = await self._line(child, deadline_s, late=late)
        if not isinstance(line, Listening):
            return False
        self._port, self.adapters = line.port, line.adapters
        return True

    async def _line(self, child: _Child, deadline_s: float, *, late: str) -> Armed | Listening | Released | None:
        reading = asyncio.create_task(child.read_line(), name=f"standard output of {self.name}")
        try:
            while not reading.done() and (left_s := deadline_s - self.clock()) > 0:
                await asyncio.wait({reading}, timeout=max(left_s, _LEAST_WAIT_S))
            if not reading.done():
                self._words.note(late)
                return None
            line = reading.result()
            return msgspec.json.decode(line, type=Armed | Listening | Released) if line else None
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

    def tell(self, line: ChildConfig | Order) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(line) + b"\n")

    async def read_line(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readline()

    @property
    def silent(self) -> bool:
        """Whether it has said its last line."""
        assert self.process.stdout is not None
        return self.process.stdout.at_eof()

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
