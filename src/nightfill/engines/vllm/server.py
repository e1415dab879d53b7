"""One vLLM server of ours: started on a free port of loopback, watched, started again when it ends, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.engines.last_words import LastWords
from nightfill.engines.supervised import State, Supervised
from nightfill.engines.vllm.api import VllmApi
from nightfill.engines.vllm.launched import called, inherited, launched
from nightfill.errors import EngineError, EngineRefused, EngineStart, EngineUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from nightfill.config import EngineSettings, Settings
    from nightfill.engines.backoff import BackoffPolicy
    from nightfill.engines.vllm.args import Launch

logger = logging.getLogger(__name__)

STOP_S: Final = 20.0
"""For a server to end in order; then it is killed, with all its processes."""
_GUARD: Final = (sys.executable, "-m", "nightfill.engines.vllm.guard")
_GRACE_S: Final = 5.0
"""For the guard, beyond that."""
_LOOK_S: Final = 0.25
_PROGRESS_S: Final = 15.0
_LOG_BYTES: Final = 8 << 20
"""Then a new file is begun; the one before is kept."""
# Below its HTTP surface vLLM sees tokens, but for the shapes that answers are to have.
_TEXTLESS: Final = re.compile(rb"\((EngineCore|Worker)\S* pid=\d+\) (ERROR|CRITICAL) (?!.*(gramma|schema|regex))")
# Of an exception the last line is worth keeping, not where it went through.
_DULL: Final = re.compile(
    rb"(\(\w+( pid=\d+)?\) )?((DEBUG|INFO|WARNING) |((ERROR|CRITICAL) [^\]]*\] ?)?(\s*$|    |  File |Traceback ))"
    rb"|.*\w*Warning: |  warnings\.warn\(|[IW]\d{4} "
)


class VllmServer(Supervised["_Child"]):
    """Reached at `url` with `api_key` alone, a random one; `settings` is how a client asks it. See `Supervised`."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineSettings,
        *,
        data_dir: Path,
        policy: BackoffPolicy | None = None,
        again: bool = True,
        stop_s: float = STOP_S,
    ) -> None:
        """`data_dir` is absolute; the server's log and the store's settings for it go to `engines` below it. Raises
        BadSetting.
        """
        super().__init__(engine.name, words=LastWords(_TEXTLESS, _DULL), policy=policy, again=again)
        self.api_key: Final = secrets.token_urlsafe(32)
        self.settings: Final = msgspec.structs.replace(engine, model=called(engine), api_key=self.api_key)
        self._all = settings
        self._engine = engine
        self._data_dir = data_dir
        self._stop_s = stop_s
        self._port = 0
        stem = data_dir / "engines" / re.sub(r"[^\w.-]", "_", engine.name)
        self.log: Final = stem.with_name(f"{stem.name}.log")
        self._store_file = stem.with_name(f"{stem.name}.store")
        for warning in self._launch(port=1).warnings:
            logger.warning("engine %s: %s", engine.name, warning)

    def _launch(self, port: int) -> Launch:
        return launched(
            self._all,
            self._engine,
            data_dir=self._data_dir,
            port=port,
            api_key=self.api_key,
            settings_file=str(self._store_file),
        )

    @property
    def url(self) -> str:
        """Base address. Raises EngineUnavailable unless it answers requests, EngineStart where it never will."""
        if self.state is State.FAILED:
            raise EngineStart(f"could not be started: {self.last_words}", engine=self.name)
        if self.state is not State.READY:
            raise EngineUnavailable(f"is {self.state.name.lower()}", engine=self.name)
        return self._address

    @property
    def base(self) -> str:
        """Its address, also asleep. Raises EngineUnavailable while it does not run."""
        return self._address if self.state is State.ASLEEP else self.url

    def fall_asleep(self) -> None:
        """No `url` from now on: a request to a server that sleeps hangs until it wakes."""
        if self.state is State.READY:
            self._become(State.ASLEEP)

    def wake_up(self) -> None:
        """It answers requests again."""
        if self.state is State.ASLEEP:
            self._become(State.READY)

    @property
    def _address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def last_words(self) -> str:
        """The end of what the servers said, and how they ended; no request's text."""
        words = self._words.tail()
        return words and f"{words} (more in {self.log})"

    async def _spawn(self) -> _Child:
        self._port = _free_port()
        start = self._launch(self._port)
        log = await asyncio.to_thread(self._prepare, start)
        environment = {**inherited(dict(os.environ)), **start.env}
        return await _Child.spawn(start.argv, environment, log=log, stop_s=self._stop_s)

    def _prepare(self, start: Launch) -> _Log:
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if start.file:
            draft = self._store_file.with_name(f"{self._store_file.name}.draft")
            draft.unlink(missing_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(start.file)
            draft.rename(self._store_file)
        return _Log(self.log)

    async def _bring_up(self, child: _Child) -> bool:
        limit_s = self._engine.start_timeout_s
        began_s = told_s = time.monotonic()
        ended = asyncio.create_task(child.process.wait(), name=f"end of {self.name}")
        api = VllmApi(self._address, engine=self.name, api_key=self.api_key)
        stranger = VllmApi(self._address, engine=self.name)
        try:
            while not ended.done():
                if await api.health():
                    return await self._is_ours(api, stranger)
                now_s = time.monotonic()
                if now_s - began_s > limit_s:
                    self._words.note(f"not up after {limit_s:g} s")
                    break
                if now_s - told_s > _PROGRESS_S:
                    told_s = now_s
                    logger.info(
                        "engine %s: starting for %.0f s; it says in %s how far it is",
                        self.name,
                        now_s - began_s,
                        self.log,
                    )
                await asyncio.wait({ended}, timeout=_LOOK_S)
            return False
        finally:
            ended.cancel()
            await asyncio.wait({ended})
            await api.aclose()
            await stranger.aclose()

    async def _is_ours(self, api: VllmApi, stranger: VllmApi) -> bool:
        """Whether what answers asks for our key: else somebody took the port between our choice and the server."""
        try:
            await stranger.models()
        except EngineRefused:
            with contextlib.suppress(EngineError):
                await api.models()
                return True
        except EngineError:
            pass  # said below, whatever it was
        self._words.note(f"something else than the server that was started answers at port {self._port}")
        return False

    async def _listen(self, child: _Child) -> None:
        while data := await child.read():
            self._words.feed(data)
            await asyncio.to_thread(child.log.write, data)


class _Child:
    """A guard, and the server below it."""

    def __init__(self, process: asyncio.subprocess.Process, *, log: _Log, stop_s: float) -> None:
        self.process = process
        self.log = log
        self._stop_s = stop_s

    @classmethod
    async def spawn(cls, argv: tuple[str, ...], environment: dict[str, str], *, log: _Log, stop_s: float) -> _Child:
        process = await asyncio.create_subprocess_exec(
            *_GUARD,
            f"{stop_s:g}",
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )
        return cls(process, log=log, stop_s=stop_s)

    async def read(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.read(65536)

    async def end(self) -> None:
        """The guard sees its input close, and does all the rest, whether we wait for it or not."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(self._stop_s + _GRACE_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def release(self) -> None:
        """Nothing names it."""


class _Log:
    """What servers say, readable by our user alone; two files of bounded size. One thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._broken = False

    def write(self, data: bytes) -> None:
        """Append. A full disk costs the log, not the server."""
        try:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_size > _LOG_BYTES:
                    self._path.rename(self._path.with_name(f"{self._path.name}.1"))
            with open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as file:
                file.write(data)
        except OSError as error:
            if not self._broken:
                logger.warning("%s: cannot be written: %s", self._path, error.strerror)
            self._broken = True


def _free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
