"""The file of an arena: opened with suspicion, mapped, locked, copied in and out of.

Whoever touches a mapped page that its file no longer has is killed by SIGBUS, so the length is looked at before each
use, and memory is allocated before it is written to (`grow`). What remains is a file cut short by its owner's own hand
in the microseconds between look and use; no process other than one of the same user can do that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

from nightfill.errors import TierFull, TierUnavailable
from nightfill.kv.tiers.arena_lru import Oldest
from nightfill.kv.tiers.arena_table import VERSION, Geometry, Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nightfill.kv.tiers.arena_table import Runs

_CHUNK: Final = 1 << 20
"""A copy into the arena holds Python's lock; between chunks other threads get their turn."""
_FIRST_WAIT_S: Final = 20e-6
_LONGEST_WAIT_S: Final = 1e-3
_OPEN_ROUNDS: Final = 8


class ArenaFile:
    """A mapped arena. Safe to use from any thread; whoever still uses it when it is let go of keeps it mapped."""

    def __init__(self, fd: int, path: Path, geometry: Geometry) -> None:
        """Takes over `fd`, which is of the right length. Raises TierUnavailable."""
        weakref.finalize(self, os.close, fd).atexit = False
        self._fd = fd
        self._path = path
        self._geometry = geometry
        self._inode = os.fstat(fd).st_ino
        self._threads = threading.Lock()
        try:
            pages = mmap.mmap(fd, geometry.file_bytes)
        except (OSError, ValueError) as error:
            raise TierUnavailable(f"cannot map {path}: {error}") from error
        with contextlib.suppress(OSError):
            # KV has no place in a core dump, and 64 GiB of it even less.
            pages.madvise(mmap.MADV_DONTDUMP)
        self._view = memoryview(pages)
        self._start = ctypes.c_char.from_buffer(pages)
        self.table: Final = Table(self._view, geometry)
        self.oldest: Final = Oldest(self.table, geometry)
        self.process: Final = os.getpid()

    @property
    def intact(self) -> bool:
        """Whether the file still is where it was and as long as it was."""
        found = os.fstat(self._fd)
        return found.st_size == self._geometry.file_bytes and found.st_nlink == 1

    @contextlib.contextmanager
    def locked(self, timeout_s: float) -> Iterator[None]:
        """One writer at a time among all threads and processes; the kernel frees what a killed one held.

        Raises TierUnavailable when others hold it for `timeout_s`, or the file is not what it was.
        """
        deadline_s = time.monotonic() + timeout_s
        if not self._threads.acquire(timeout=timeout_s):
            raise TierUnavailable(f"{self._path} stayed locked for {timeout_s:g} s by another thread")
        try:
            # Opened anew each time: children forked meanwhile would share a descriptor, and hold its lock for us.
            with _opened(self._path) as fd:
                _lock(fd, self._path, deadline_s, timeout_s)
                try:
                    if os.fstat(fd).st_ino != self._inode or not self.intact:
                        raise TierUnavailable(f"{self._path} was replaced or cut short")
                    yield
                finally:
                    fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def grow(self, first: int, count: int) -> None:
        """Put memory behind `count` slabs from `first` on. Raises TierFull when there is none left."""
        at = self._geometry.data_at + first * self._geometry.slab_bytes
        _allocate(self._fd, at, count * self._geometry.slab_bytes, self._path)

    def copy_out(self, runs: Runs, out: memoryview) -> None:
        """Fill `out` from the slabs of `runs`, which hold at least as much."""
        source = ctypes.addressof(self._start)
        target = ctypes.addressof(ctypes.c_char.from_buffer(out))
        done = 0
        for at, length in self._spans(runs, len(out)):
            # Unlike an assignment to a view, this lets other threads run.
            ctypes.memmove(target + done, source + at, length)
            done += length

    def copy_in(self, data: memoryview, runs: Runs) -> None:
        """Put `data` into the slabs of `runs`, and zeros after it."""
        done = 0
        for at, length in self._spans(runs, len(data)):
            for part in range(0, length, _CHUNK):
                size = min(_CHUNK, length - part)
                self._view[at + part : at + part + size] = data[done : done + size]
                done += size
        slab, count = runs[-1]
        end = self._geometry.data_at + (slab + count) * self._geometry.slab_bytes
        rest = -done % self._geometry.slab_bytes
        ctypes.memset(ctypes.addressof(self._start) + end - rest, 0, rest)

    def scrub(self, runs: Runs) -> None:
        """Zero the slabs of `runs`: what was deleted must not be found in memory."""
        size = self._geometry.slab_bytes
        for slab, count in runs:
            at = self._geometry.data_at + slab * size
            ctypes.memset(ctypes.addressof(self._start) + at, 0, count * size)

    def _spans(self, runs: Runs, nbytes: int) -> Iterator[tuple[int, int]]:
        """(offset in the file, length) of the pieces of `nbytes` bytes."""
        size = self._geometry.slab_bytes
        for slab, count in runs:
            # Checked here once more, where a number becomes an address.
            assert slab >= 0
            assert 0 < count <= self._geometry.slabs - slab
            length = min(count * size, nbytes)
            yield self._geometry.data_at + slab * size, length
            nbytes -= length


def arena_path(folder: Path, data_dir: Path, max_bytes: int) -> Path:
    """The file that all processes of this user with this data folder and cap share."""
    name = hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:16]
    return folder / f"nightfill-{os.geteuid()}-{name}-v{VERSION}-{max_bytes}"


def remove_others(path: Path) -> int:
    """Delete the arenas of the same data folder with other caps or of other versions; how many there were.

    Settings have changed; a process that still runs under the old ones makes itself a new arena.
    """
    stem = path.name.rsplit("-", 2)[0]
    removed = 0
    for other in path.parent.glob(f"{stem}-v*"):
        if other != path:
            with contextlib.suppress(OSError):
                other.unlink()
                removed += 1
    return removed


def open_arena(path: Path, geometry: Geometry, *, timeout_s: float) -> ArenaFile:
    """The arena at `path`, made if there is none, made anew if it is damaged. Raises TierUnavailable."""
    deadline_s = time.monotonic() + timeout_s
    for _ in range(_OPEN_ROUNDS):
        fd = _open_checked(path, os.O_CREAT)
        try:
            _lock(fd, path, deadline_s, timeout_s)
            try:
                if os.fstat(fd).st_nlink != 1:
                    continue  # somebody replaced it while we waited
                if os.fstat(fd).st_size == 0:
                    _make(fd, path, geometry)
                if os.fstat(fd).st_size == geometry.file_bytes:
                    arena = ArenaFile(os.dup(fd), path, geometry)
                    if arena.table.fits:
                        return arena
                # Never mended in place: others may have it mapped, and see by the missing name that it is over.
                path.unlink()
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)
        except OSError as error:
            raise TierUnavailable(f"cannot make {path}: {error.strerror}") from error
        finally:
            os.close(fd)
    raise TierUnavailable(f"{path} is replaced again and again")


def _make(fd: int, path: Path, geometry: Geometry) -> None:
    try:
        _allocate(fd, 0, geometry.data_at, path)
    except TierFull as error:
        raise TierUnavailable(str(error)) from error
    os.ftruncate(fd, geometry.file_bytes)
    arena = ArenaFile(os.dup(fd), path, geometry)
    arena.table.format()


def _allocate(fd: int, at: int, nbytes: int, path: Path) -> None:
    try:
        os.posix_fallocate(fd, at, nbytes)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}:
            raise TierFull(
                f"no shared memory left for {nbytes} bytes more of {path}: enlarge {path.parent} or lower the cap"
            ) from error
        raise TierUnavailable(f"cannot allocate {nbytes} bytes of {path}: {error.strerror}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = _open_checked(path, 0)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_checked(path: Path, flags: int) -> int:
    """Open a file that must be ours alone: /dev/shm belongs to everybody."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | flags, 0o600)
    except OSError as error:
        raise TierUnavailable(f"cannot open {path}: {error.strerror}") from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(fd)
        raise TierUnavailable(f"{path} is not a file of this user alone")
    return fd


def _lock(fd: int, path: Path, deadline_s: float, timeout_s: float) -> None:
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline_s:
                raise TierUnavailable(f"{path} stayed locked for {timeout_s:g} s by another process") from error
        except OSError as error:
            raise TierUnavailable(f"cannot lock {path}: {error.strerror}") from error
        else:
            return
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
