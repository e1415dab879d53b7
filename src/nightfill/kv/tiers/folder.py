"""The folder of a disk tier: one file per block, and nothing but the file system to say what is there.

    <root>/v1/<first 2 hex digits of the key>/<key, 64 hex digits>.kv
    <root>/v1/drafts/<key>.<process id>.<random>
    <root>/v1/written                 what today's writes came to, if they have a budget (see `wear`)
    <root>/v1/retention               what the process that rules wants kept (see `retention`)

A draft is written, its length is checked, and it is renamed: a reader sees a whole block or none.

*Power cuts.* Nothing is synced: KV can be computed again, so a block lost with the power is only a miss. A block that
the cut left torn or empty is found by its length or its seal, and is a miss too.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from nightfill.errors import BlockCorrupt, TierFull, TierUnavailable
from nightfill.kv.block import HEADER_BYTES
from nightfill.kv.buffer import ALIGNMENT
from nightfill.kv.direct_io import probe, read_all, write_all
from nightfill.kv.eviction import Record
from nightfill.kv.key import BlockKey
from nightfill.kv.tiers.retention import RetentionFile
from nightfill.kv.tiers.wear import WriteBudget

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nightfill.kv.buffer import Buffers
    from nightfill.kv.eviction import Retention

_log = logging.getLogger(__name__)

LAYOUT_VERSION: Final = "v1"
DRAFT_AGE_S: Final = 600.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BLOCK_NAME: Final = re.compile(r"([0-9a-f]{64})\.kv")
_SHARD_NAME: Final = re.compile(r"[0-9a-f]{2}")


class BlockFolder:
    """The files of one disk tier. Holds no state but what was probed; safe to use from threads and processes.

    Every method raises TierFull where the file system is full, over quota or over a limit of the process, and
    TierUnavailable where it fails in another way.
    """

    def __init__(self, root: Path, *, name: str, direct: bool, buffers: Buffers, write_bytes_per_day: int = 0) -> None:
        self.name: Final = name
        self.base: Final = root / LAYOUT_VERSION
        self._drafts = self.base / "drafts"
        self._buffers = buffers
        self._want_direct = direct
        self._direct: bool | None = None
        self._budget = WriteBudget(self.base / "written", name=name, bytes_per_day=write_bytes_per_day)
        self._retention = RetentionFile(self.base / "retention", drafts=self._drafts)

    @property
    def direct(self) -> bool:
        """Whether O_DIRECT was wanted, probed and found."""
        return bool(self._direct)

    def prepare(self) -> None:
        """Make the folders, probe O_DIRECT the first time. Only the owner may enter or read."""
        with self._translated("prepare the folder"):
            for folder in (self.base, self._drafts):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._direct is None:
                self._direct = self._want_direct and probe(self._drafts)

    def path(self, key: BlockKey) -> Path:
        """Where a block lies."""
        digits = key.hex()
        return self.base / digits[:2] / f"{digits}.kv"

    def read(self, key: BlockKey, *, max_bytes: int) -> tuple[memoryview, Record] | None:
        """A block and its record; None when there is none. Raises BlockCorrupt for a length that cannot be."""
        with self._translated("read a block"):
            try:
                fd = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if self._direct else 0))
            except FileNotFoundError:
                return None
            try:
                found = os.fstat(fd)
                if found.st_size % ALIGNMENT or not HEADER_BYTES <= found.st_size <= max_bytes:
                    raise BlockCorrupt(f"{self.name}: a file of {found.st_size} bytes is no block")
                out = self._buffers.take(found.st_size)
                read_all(fd, out)
            except EOFError as error:
                raise BlockCorrupt(f"{self.name}: {error}") from error
            finally:
                os.close(fd)
        return out.toreadonly(), Record(key, found.st_size, found.st_mtime)

    def head(self, key: BlockKey) -> memoryview | None:
        """The first page of a block, by way of the page cache; None when there is none, or no whole page of it."""
        with self._translated("read a header"):
            try:
                fd = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                page = os.pread(fd, HEADER_BYTES, 0)
            finally:
                os.close(fd)
        return memoryview(page) if len(page) == HEADER_BYTES else None

    def charge(self, nbytes: int, *, now_s: float) -> None:
        """Take a write from today's budget. Raises TierFull when there is not so much left."""
        with self._translated("count what is written"):
            try:
                self._budget.charge(nbytes, now_s=now_s)
            except FileNotFoundError:
                self.prepare()
                self._budget.charge(nbytes, now_s=now_s)

    def refund(self, nbytes: int, *, now_s: float) -> None:
        """Give back what `charge` took. A count that cannot be mended is too high, which does no harm."""
        with suppress(OSError):
            self._budget.refund(nbytes, now_s=now_s)

    def heed(self, own: Retention, *, now_s: float) -> Retention:
        """`own`, and what the process that rules wants kept."""
        with self._translated("read what is to be kept"):
            return self._retention.heed(own, now_s=now_s)

    def rule(self, own: Retention, *, now_s: float) -> None:
        """Tell other processes what to keep."""
        with self._translated("tell what is to be kept"):
            try:
                self._retention.publish(own, now_s=now_s)
            except FileNotFoundError:
                self.prepare()
                self._retention.publish(own, now_s=now_s)

    def publish(self, key: BlockKey, sealed: memoryview, *, used_s: float) -> None:
        """Store a block, in place of one that is there. Nothing is left behind when it fails."""
        with self._translated("write a block"):
            if self._direct is None:
                self.prepare()
            draft = self._drafts / f"{key.hex()}.{os.getpid()}.{os.urandom(6).hex()}"
            try:
                try:
                    self._write_draft(draft, sealed, used_s)
                except FileNotFoundError:
                    # Somebody removed the folder under us, which is their right with a cache.
                    self.prepare()
                    self._write_draft(draft, sealed, used_s)
                self._rename(draft, self.path(key))
            except BaseException:
                # Whatever goes wrong here is lesser than what brought us here.
                with suppress(OSError):
                    draft.unlink(missing_ok=True)
                raise

    def find(self, key: BlockKey) -> Record | None:
        """The record of a block, from its file alone."""
        with self._translated("look for a block"):
            try:
                found = self.path(key).stat()
            except FileNotFoundError:
                return None
            return Record(key, found.st_size, found.st_mtime)

    def stamp(self, key: BlockKey, used_s: float) -> None:
        """Note a use, so that other processes see it."""
        with self._translated("touch a block"), suppress(FileNotFoundError):
            os.utime(self.path(key), times=(used_s, used_s))

    def remove(self, key: BlockKey) -> bool:
        """Delete a block; whether it was there."""
        with self._translated("delete a block"):
            try:
                self.path(key).unlink()
            except FileNotFoundError:
                return False
            return True

    def shards(self) -> dict[int, int]:
        """First byte of the keys in it -> mtime in ns, of each subfolder."""
        with self._translated("list the folder"):
            found = {}
            try:
                with os.scandir(self.base) as entries:
                    for entry in entries:
                        if _SHARD_NAME.fullmatch(entry.name):
                            with suppress(FileNotFoundError):
                                found[int(entry.name, 16)] = entry.stat().st_mtime_ns
            except FileNotFoundError:
                return {}
            return found

    def scan(self, shard: int) -> list[Record]:
        """The blocks in one subfolder."""
        found = []
        with (
            self._translated("list the folder"),
            suppress(FileNotFoundError),
            os.scandir(self.base / f"{shard:02x}") as entries,
        ):
            for entry in entries:
                name = _BLOCK_NAME.fullmatch(entry.name)
                if name and int(entry.name[:2], 16) == shard:
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            found.append(Record(BlockKey(bytes.fromhex(name[1])), status.st_size, status.st_mtime))
        return found

    def free_bytes(self) -> int:
        """What the file system has left for us."""
        with self._translated("ask for free space"):
            try:
                status = os.statvfs(self.base)
            except FileNotFoundError:
                self.prepare()
                status = os.statvfs(self.base)
            return status.f_bavail * status.f_frsize

    def clean_drafts(self, *, now_s: float) -> int:
        """Remove drafts that their writers left behind; how many. A writer that only sleeps still holds its lock."""
        removed = 0
        with self._translated("clean up drafts"), suppress(FileNotFoundError):
            for draft in self._drafts.iterdir():
                with suppress(FileNotFoundError, BlockingIOError):
                    if now_s - draft.stat().st_mtime < DRAFT_AGE_S:
                        continue
                    fd = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        draft.unlink()
                        removed += 1
                    finally:
                        os.close(fd)
        return removed

    def _write_draft(self, draft: Path, sealed: memoryview, used_s: float) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | (os.O_DIRECT if self._direct else 0)
        fd = os.open(draft, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_all(fd, sealed)
            written = os.fstat(fd).st_size
            if written != len(sealed):
                raise OSError(errno.EIO, f"{written} of {len(sealed)} bytes arrived")
            os.utime(fd, times=(used_s, used_s))
        finally:
            os.close(fd)

    def _rename(self, draft: Path, target: Path) -> None:
        try:
            draft.rename(target)
        except FileNotFoundError:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            draft.rename(target)

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = TierFull if error.errno in _FULL else TierUnavailable
            raise kind(f"{self.name}: cannot {doing} under {self.base}: {error.strerror}") from error
        except EOFError as error:
            raise TierUnavailable(f"{self.name}: cannot {doing} under {self.base}: {error}") from error
