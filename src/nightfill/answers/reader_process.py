"""A reader in a process of its own, so that it can give way to the gateway's requests (see `reader_child`).

A thread with little weight would not do: whoever waits for the interpreter's lock would wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from nightfill.answers.embed import DIMENSIONS
from nightfill.answers.reader import Embed, Embedded, Judge, Judged, Ready, Said, Unfit, framed, unframed
from nightfill.errors import BadSetting, ReaderUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from nightfill.answers.embed import Vectors
    from nightfill.answers.reader import Asked

T = TypeVar("T", Embedded, Judged)

_LOG: Final = logging.getLogger(__name__)
START_S: Final = 120.0
"""It starts behind everybody else."""
REPLY_S: Final = 30.0
"""What takes longer hangs: nobody waits for a look-up as long as that."""
_END_S: Final = 5.0
_FIRST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 60.0
_PROVEN_S: Final = 60.0
"""After so long the waits between starts are short again."""


class ReaderProcess:
    """Implements `Reader`. One question after the other; a process that ends is started again by `mend`, with longer
    and longer waits in between. It ends with us, whatever ends us: it reads the end of its standard input.
    """

    def __init__(self, folder: str, *, command: Sequence[str] = (), reply_s: float = REPLY_S) -> None:
        """`command`: what to start instead of the real one, for tests. Use `started`."""
        self._command = [*(command or (sys.executable, "-m", "nightfill.answers.reader_child")), folder]
        self._reply_s = reply_s
        self._identity = ""
        self._asking = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._failures = 0
        self._began_s = self._again_s = float("-inf")
        self._closed = False

    @classmethod
    def started(cls, folder: str = "") -> Self:
        """One that works. `folder`: see `load_embedder`. Takes a second, longer on a busy machine.

        Raises BadSetting as `load_embedder`, ReaderUnavailable when the process does not come up.
        """
        reader = cls(folder)
        with reader._asking:
            reader._start()
        return reader

    @property
    def identity(self) -> str:
        """See `Reader`."""
        return self._identity

    @property
    def pid(self) -> int | None:
        """Of the process that works now."""
        process = self._process
        return None if process is None else process.pid

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Reader`."""
        import numpy as np

        said = self._asked(Embed(tuple(texts)), Embedded)
        if len(said.vectors) != len(texts) * DIMENSIONS * 4:
            why = f"said {len(said.vectors)} bytes of vectors for {len(texts)} texts"
            with self._asking:
                self._fail(why)
            raise ReaderUnavailable(why)
        return np.frombuffer(said.vectors, np.float32).reshape(len(texts), DIMENSIONS)

    def judge(self, asked: str, stored: Sequence[str]) -> tuple[int | None, str]:
        """See `Reader`."""
        said = self._asked(Judge(asked, tuple(stored)), Judged)
        return said.place, said.reason

    def mend(self) -> None:
        """See `Reader`."""
        with self._asking:
            if self._closed or (self._process is not None and self._process.poll() is None):
                return
            if self._process is not None:
                self._fail("ended")
            if time.monotonic() < self._again_s:
                return
            try:
                self._start()
            except (BadSetting, ReaderUnavailable) as exc:
                self._fail(f"cannot be started: {exc.why if isinstance(exc, ReaderUnavailable) else exc}")
            else:
                _LOG.info("near answers are back")

    def close(self) -> None:
        """See `Reader`."""
        self._closed = True
        line = self._line
        if line is not None:
            with contextlib.suppress(OSError):  # whoever waits for an answer hears the end of it
                line.shutdown(socket.SHUT_RDWR)
        with self._asking:
            self._end()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._line, self._began_s = ours, time.monotonic()
        try:
            with theirs:
                # A group of its own: what is typed at a terminal is for the gateway, which ends it.
                self._process = subprocess.Popen(
                    self._command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, process_group=0
                )
            match self._said(START_S):
                case Ready(identity=identity) if self._identity in ("", identity):
                    self._identity = identity
                case Ready():
                    raise ReaderUnavailable("computes another embedding than before; start the gateway anew")  # noqa: TRY301
                case Unfit(why=why, param=param):
                    raise BadSetting(why, param=param)  # noqa: TRY301
                case other:
                    raise ReaderUnavailable(f"began with {type(other).__name__}")  # noqa: TRY301
        except OSError as exc:
            self._end()
            raise ReaderUnavailable(f"cannot be made: {exc.strerror}") from exc
        except (BadSetting, ReaderUnavailable):
            self._end()
            raise

    def _asked(self, asked: Asked, wanted: type[T]) -> T:
        with self._asking:
            if self._line is None:
                raise ReaderUnavailable("is gone")
            try:
                self._line.settimeout(self._reply_s)
                self._line.sendall(framed(asked))
                said = self._said(self._reply_s)
            except (OSError, ReaderUnavailable) as exc:
                why = exc.why if isinstance(exc, ReaderUnavailable) else f"does not listen: {exc.strerror or exc}"
                self._fail(why)
                raise ReaderUnavailable(why) from exc
            if isinstance(said, wanted):
                return said
            why = f"said {type(said).__name__} instead of {wanted.__name__}"
            self._fail(why)
            raise ReaderUnavailable(why)

    def _said(self, within_s: float) -> Said:
        assert self._line is not None
        self._line.settimeout(within_s)
        try:
            content = unframed(self._line.recv)
            if content is not None:
                said: Said = msgspec.msgpack.decode(content, type=Said)
                return said
        except TimeoutError as exc:
            raise ReaderUnavailable(f"said nothing for {within_s:g} s") from exc
        except (OSError, ValueError) as exc:  # msgspec's errors are ValueErrors
            raise ReaderUnavailable(f"cannot be understood: {exc}") from exc
        raise ReaderUnavailable("ended")

    def _fail(self, why: str) -> None:
        """Let go of it, and say when the next may be started."""
        status = self._end()
        if self._closed:
            return
        now_s = time.monotonic()
        self._failures = 1 if now_s - self._began_s >= _PROVEN_S else self._failures + 1
        wait_s = min(_FIRST_WAIT_S * 2.0 ** min(self._failures - 1, 10), _LONGEST_WAIT_S)
        self._again_s = now_s + wait_s
        _LOG.warning("the process that reads questions %s (status %s): no near answers for %.0f s", why, status, wait_s)

    def _end(self) -> int | None:
        """Let go of the process, which ends at the end of its line; the status it ended with."""
        process, line, self._process, self._line = self._process, self._line, None, None
        if line is not None:
            line.close()
        if process is None:
            return None
        try:
            return process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
