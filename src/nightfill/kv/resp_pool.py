"""A bounded pool of RESP connections that fails at once while the server is gone, and finds it again by itself."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from nightfill.errors import TierUnavailable
from nightfill.kv.resp import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nightfill.kv.resp import Address, Command, Reply, Sink

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0


def pause_s(failures: int) -> float:
    """How long to wait before the next try to connect, after so many that failed: 0, 0.05, 0.1, ... 5."""
    return min(_FIRST_PAUSE_S * 2 ** min(failures - 1, 16), _LONGEST_PAUSE_S) if failures else 0.0


class Pool:
    """Up to `connections` connections to one server, each used by one thread at a time. Safe to use from any thread.

    A call takes at most `timeout_s`, with the wait for a connection. The first one that fails closes the pool to all:
    calls then fail at once, while a thread of ours tries to reach the server, at growing intervals, and opens the
    pool again. Errors that the server answers are replies, and change nothing.
    """

    def __init__(self, address: Address, *, name: str, connections: int, timeout_s: float) -> None:
        assert connections > 0
        self._address = address
        self.name: Final = name
        self.timeout_s = timeout_s
        self._connections = connections
        self._free = threading.Semaphore(connections)
        self._lock = threading.Lock()
        """Guards all that follows; never held during I/O."""
        self._idle: list[Connection] = []
        self._down: str | None = None
        """Why the server counts as gone."""
        self._prober: threading.Thread | None = None
        self._up = threading.Event()
        self._up.set()
        self._closing = threading.Event()

    def call(self, *commands: Command, into: Sink | None = None) -> list[Reply]:
        """As `Connection.call`. Raises TierUnavailable, and what `into` raises."""
        deadline_s = time.monotonic() + self.timeout_s
        with self._connection(deadline_s) as connection:
            return connection.call(commands, deadline_s=deadline_s, into=into)

    def post(self, command: Command) -> None:
        """As `Connection.post`. Raises TierUnavailable."""
        deadline_s = time.monotonic() + self.timeout_s
        with self._connection(deadline_s) as connection:
            connection.post(command, deadline_s=deadline_s)

    def discard(self) -> None:
        """Hang up on all connections that nobody uses just now, so that the next calls look the server up anew."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def wait_until_up(self, timeout_s: float) -> bool:
        """Wait while the server counts as gone; whether it does not any more. It may be gone all the same."""
        return self._up.wait(timeout_s)

    def close(self) -> None:
        """Hang up; calls under way end first. Idempotent."""
        self._closing.set()
        self.discard()
        with self._lock:
            prober = self._prober
        if prober is not None:
            prober.join(self.timeout_s + 1)

    @contextmanager
    def _connection(self, deadline_s: float) -> Iterator[Connection]:
        # A server that is gone is no reason to wait for those who found that out. Without a lock: it is asked again.
        gone = self._down is not None or self._closing.is_set()
        if not self._free.acquire(timeout=0 if gone else max(deadline_s - time.monotonic(), 0)):
            raise TierUnavailable(
                f"{self.name}: {self._down or f'all {self._connections} connections stayed in use'}: {self._address}"
            )
        try:
            connection = None
            try:
                connection = self._take(deadline_s)
                yield connection
            except TierUnavailable as error:
                if connection is None or connection.closed:
                    self._lost(error)
                raise TierUnavailable(f"{self.name}: {error}") from error
            finally:
                if connection is not None:
                    self._give_back(connection)
        finally:
            self._free.release()

    def _check(self) -> None:
        if self._closing.is_set():
            raise TierUnavailable("closed")
        if (down := self._down) is not None:
            raise TierUnavailable(down)

    def _take(self, deadline_s: float) -> Connection:
        while True:
            self._check()
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Connection(self._address, deadline_s=deadline_s)
            # One that the server closed meanwhile, as on a restart, is no reason to fail.
            if connection.usable():
                return connection
            connection.close()

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            keep = not connection.closed and self._down is None and not self._closing.is_set()
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def _lost(self, error: TierUnavailable) -> None:
        with self._lock:
            if self._down is not None or self._closing.is_set():
                return
            self._down = str(error)
            self._up.clear()
            self._prober = threading.Thread(target=self._probe, name=f"{self.name}-probe", daemon=True)
            self._prober.start()
        self.discard()

    def _probe(self) -> None:
        failures = 0
        while not self._closing.wait(pause_s(failures)):
            try:
                Connection(self._address, deadline_s=time.monotonic() + self.timeout_s).close()
            except TierUnavailable as error:
                failures += 1
                with self._lock:
                    self._down = str(error)
                continue
            with self._lock:
                self._down = None
                self._up.set()
            if failures:
                _log.info("%s: %s is back", self.name, self._address)
            return
