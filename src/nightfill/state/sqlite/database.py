"""One SQLite file: a connection that reads at once, and one that writes in a thread of its own.

The file is in WAL mode, so readers neither wait for writers nor make them wait, and a read costs microseconds on the
event loop. Writes wait for each other across processes (up to `BUSY_S`), so they run in the writer thread.

What a power cut may lose: with `synchronous=NORMAL` the file is never damaged, and a killed process loses nothing that
was committed, but the last transactions before a power cut may be undone together. For jobs, fills and the access log
that costs repeated work at most: what a fill stored is found again by its keys. Adding, replacing and deleting a
context are committed with `synchronous=FULL`: once they return, they survive a power cut too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from nightfill.errors import StateUnavailable
from nightfill.state.sqlite.schema import migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

BUSY_S: Final = 5.0
"""How long a writer waits for another process's transaction, each of which takes well under a millisecond."""
_READER_BUSY_S: Final = 0.25

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """The file at `path`, created with mode 0600, missing folders with 0700. Methods raise StateUnavailable.

    `read` may be called from any thread. `write` and `aclose` belong to the event loop.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _translated(path):
            _make_private(path)
            self._writer = _connect(path, busy_s=BUSY_S)
            try:
                migrate(self._writer)
                self._reader = _connect(path, busy_s=_READER_BUSY_S)
                self._reader.execute("PRAGMA query_only = ON")
            except BaseException:
                self._writer.close()
                raise
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nightfill-state")
        self._read_lock = threading.Lock()
        self._closed = False

    def read(self, sql: str, *values: object, **named: object) -> list[Any]:
        """Rows of one query, in the calling thread; each sees all that was committed before the call."""
        # A statement object of the driver is shared by equal texts; two threads must not step it together.
        with self._read_lock, _translated(self.path):
            return self._reader.execute(sql, named or values).fetchall()

    def submit(
        self, act: Callable[[sqlite3.Connection], T], *, durable: bool = False, scrub: bool = False
    ) -> Future[T]:
        """Run `act` in the writer thread, in one transaction that is undone when it raises.

        `durable` survives a power cut; `scrub` also empties the write-ahead log, where deleted bytes would linger.
        """
        if self._closed:
            raise StateUnavailable(f"the state {self.path} is closed")
        return self._thread.submit(self._transact, act, durable, scrub)

    async def write(self, act: Callable[[sqlite3.Connection], T], *, durable: bool = False, scrub: bool = False) -> T:
        """As `submit`, awaited. When the caller is cancelled, the transaction is done all the same."""
        return await asyncio.wrap_future(self.submit(act, durable=durable, scrub=scrub))

    async def aclose(self) -> None:
        """Finish what was submitted and close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self._thread.shutdown(wait=True)
        # The writer goes last: the last connection of all folds the log into the file.
        with self._read_lock, _translated(self.path):
            self._reader.close()
            self._writer.close()

    def _transact(self, act: Callable[[sqlite3.Connection], T], durable: bool, scrub: bool) -> T:
        connection = self._writer
        with _translated(self.path):
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = act(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if scrub:
                # Answers "busy" as a row, not as an error, when a reader of another process is in the way; the log is
                # then emptied by a later one.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return result


def damage(path: Path) -> list[str]:
    """What SQLite finds wrong with an existing state file, at most three findings; empty when it is whole.

    Opens it for reading alone and reads it all. Raises StateUnavailable when it is no database or cannot be read.
    """
    with _translated(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
        try:
            found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
        finally:
            connection.close()
    return [] if found == ["ok"] else found


def _connect(path: Path, *, busy_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    try:
        _use_log(connection, path)
        for pragma in ("synchronous = NORMAL", "secure_delete = ON", "foreign_keys = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(f"PRAGMA journal_size_limit = {16 << 20}")
        connection.row_factory = sqlite3.Row
    except BaseException:
        connection.close()
        raise
    return connection


def _use_log(connection: sqlite3.Connection, path: Path) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StateUnavailable(f"{path}: the file system does not allow SQLite's write-ahead log (mode {mode})")


def _make_private(path: Path) -> None:
    for folder in reversed(path.parents):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    # SQLite gives its log and shared-memory files the mode of the main file.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as exc:
        raise StateUnavailable(f"state {path}: {exc}") from exc
