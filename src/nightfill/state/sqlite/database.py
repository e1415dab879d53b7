"""One SQLite file: a connection that reads at once, and one that writes in a thread of its own.

The file is in WAL mode, so readers neither wait for writers nor make them wait, and a read costs microseconds on the
event loop. Writes wait for each other across processes (up to `BUSY_S`), so they run in the writer thread: all that
came meanwhile in one transaction, since a commit costs more than what is in it, unless one of them fails.

What a power cut may lose: with `synchronous=NORMAL` the file is never damaged, and a killed process loses nothing that
was committed, but the last transactions before a power cut may be undone together. For jobs, fills and the access log
that costs repeated work at most: what a fill stored is found again by its keys. Adding, replacing and deleting a
context are committed with `synchronous=FULL`: once they return, they survive a power cut too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import operator
import os
import sqlite3
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nightfill.errors import StateUnavailable
from nightfill.state.sqlite.schema import migrate
from nightfill.state.sqlite.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

BUSY_S: Final = 5.0
"""How long a writer waits for another process's transaction, each of which takes well under a millisecond."""
_READER_BUSY_S: Final = 0.25
_LOG_SHARE: Final = 1 / 4
_LOG_BYTES: Final = (16 << 20, 256 << 20)
"""The log is folded into the file when it has such a share of its size, within these bounds: the longer it is, the more
often the same page is in it, and only the last of them is written again."""
_READER_CACHE_BYTES: Final = 16 << 20
_WRITER_CACHE_BYTES: Final = 64 << 20
"""At most, and taken as the file grows: one transition touches a page of each index, anywhere in it."""
_TOGETHER: Final = 64
"""Writes in one transaction, at most."""

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(slots=True)
class _Write:
    """What somebody waits for. `future` belongs to the event loop; the outcome to the writer, until it is told."""

    act: Callable[[sqlite3.Connection, list[Any]], Sequence[Any]]
    item: Any
    future: asyncio.Future[Any]
    durable: bool
    scrub: bool
    result: Any = None
    error: BaseException | None = None

    def tell(self) -> None:
        if self.future.done():  # its caller has left
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class Database:
    """The file at `path`, created with mode 0600, missing folders with 0700. Methods raise StateUnavailable.

    `read` may be called from any thread. `write` and `aclose` belong to the event loop.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _translated(path):
            _make_private(path)
            self._writer = _connect(path, busy_s=BUSY_S, cache_bytes=_WRITER_CACHE_BYTES)
            try:
                migrate(self._writer)
                self.tally = Tally(self._writer)
                """Of the transaction that is going on."""
                self._reader = _connect(path, busy_s=_READER_BUSY_S, cache_bytes=_READER_CACHE_BYTES)
                self._reader.execute("PRAGMA query_only = ON")
            except BaseException:
                self._writer.close()
                raise
        self._asked: list[_Write] = []
        self._writes: SimpleQueue[list[_Write] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="nightfill-state", daemon=True)
        self._synchronous = ""
        self._thread.start()
        self._read_lock = threading.Lock()
        self._closed = False

    def read(self, sql: str, *values: object, **named: object) -> list[Any]:
        """Rows of one query, in the calling thread; each sees all that was committed before the call."""
        # A statement object of the driver is shared by equal texts; two threads must not step it together.
        with self._read_lock:
            try:  # each request comes by here: a context manager made for the purpose would take as long as a read
                return self._reader.execute(sql, named or values).fetchall()
            except (sqlite3.Error, OSError) as exc:
                raise StateUnavailable(f"state {self.path}: {exc}") from exc

    def submit(
        self, act: Callable[[sqlite3.Connection], T], *, durable: bool = False, scrub: bool = False
    ) -> asyncio.Future[T]:
        """Run `act` in the writer thread; all of it is undone when it raises. Cancelling the future does not stop it.
        It may run twice, its first run undone, since it shares a transaction with others.

        `durable` survives a power cut; `scrub` also empties the write-ahead log, where deleted bytes would linger.
        """
        return self._submit(_each, act, durable=durable, scrub=scrub)

    def together(self, act: Callable[[sqlite3.Connection, list[Item]], Sequence[T]], item: Item) -> asyncio.Future[T]:
        """As `submit`, by an `act` of several items at once, which gives the outcome of each: all for which an equal
        one is asked in succession.
        """
        return self._submit(act, item)

    def _submit(
        self,
        act: Callable[[sqlite3.Connection, list[Item]], Sequence[T]],
        item: Item,
        *,
        durable: bool = False,
        scrub: bool = False,
    ) -> asyncio.Future[T]:
        if self._closed:
            raise StateUnavailable(f"the state {self.path} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._asked.append(_Write(act, item, future, durable, scrub))
        if len(self._asked) == 1:
            # After all that run now have asked, too.
            loop.call_soon(self._hand_over)
        return future

    async def write(self, act: Callable[[sqlite3.Connection], T], *, durable: bool = False, scrub: bool = False) -> T:
        """As `submit`, awaited. When the caller is cancelled, the transaction is done all the same."""
        return await self.submit(act, durable=durable, scrub=scrub)

    async def aclose(self) -> None:
        """Finish what was submitted and close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._hand_over()
        self._writes.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self._thread.join()
        # The writer goes last: the last connection of all folds the log into the file.
        with self._read_lock, _translated(self.path):
            self._reader.close()
            self._writer.close()

    def _hand_over(self) -> None:
        if self._asked:
            self._writes.put(self._asked)
            self._asked = []

    def _write_all(self) -> None:
        while (writes := self._writes.get()) is not None:
            loop = writes[0].future.get_loop()
            for first in range(0, len(writes), _TOGETHER):
                together = writes[first : first + _TOGETHER]
                # Savepoints would cost as much as the writes. So one that fails undoes all, and each is done by itself.
                if not self._do(together) and len(together) > 1:
                    for write in together:
                        self._do([write])
                # A loop that is closed by now has nobody who waits.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_tell, together)

    def _do(self, writes: Sequence[_Write]) -> bool:
        """False when one of them failed, and so all; where the file cannot be written at all, all have failed alike."""
        error: BaseException | None = None
        begun = False
        try:
            with _translated(self.path):
                self._sync("FULL" if any(write.durable for write in writes) else "NORMAL")
                self._writer.execute("BEGIN IMMEDIATE")
                begun = True
                self._transact(writes)
        except BaseException as exc:  # noqa: BLE001 - whoever waits gets it
            error = exc
        for write in writes:
            write.error = error
        return error is None or not begun

    def _transact(self, writes: Sequence[_Write]) -> None:
        connection = self._writer
        try:
            for act, group in itertools.groupby(writes, _act_of):
                alike = list(group)
                for write, result in zip(alike, act(connection, [write.item for write in alike]), strict=True):
                    write.result = result
            self.tally.write()
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                self.tally.forget()
                connection.execute("ROLLBACK")
        if any(write.scrub for write in writes):
            # Answers "busy" as a row, not as an error, when a reader of another process is in the way; the log is
            # then emptied by a later one.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _sync(self, mode: str) -> None:
        if mode != self._synchronous:
            self._writer.execute(f"PRAGMA synchronous = {mode}")
            self._synchronous = mode


_act_of: Final = operator.attrgetter("act")


def _each(connection: sqlite3.Connection, acts: list[Callable[[sqlite3.Connection], T]]) -> list[T]:
    return [act(connection) for act in acts]


def _tell(writes: Sequence[_Write]) -> None:
    for write in writes:
        write.tell()


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


def _connect(path: Path, *, busy_s: float, cache_bytes: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    try:
        _use_log(connection, path)
        for pragma in ("synchronous = NORMAL", "secure_delete = ON", "foreign_keys = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        least, most = _LOG_BYTES
        log_bytes = min(max(int(path.stat().st_size * _LOG_SHARE), least), most)
        connection.execute(f"PRAGMA journal_size_limit = {log_bytes}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {log_bytes // 4096}")
        connection.execute(f"PRAGMA cache_size = {-(cache_bytes >> 10)}")
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
