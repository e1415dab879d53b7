"""What the process that rules wants kept, told to all processes that share a folder of blocks.

    <root>/v1/retention     magic, version, count, Unix time; the key and value of each entry; a checksum

A value of +inf is a pin; a block that is pinned and worth something has two entries. The file is written as a draft and
renamed, and read again when it is another one. It is advice: what is damaged, of another version, or older than
`STALE_S`, as a ruler's that died, counts as nothing. It holds keys, which are digests, and no text.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import logging
import math
import os
import stat
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from nightfill.kv.key import BlockKey
from nightfill.kv.seal import checksum

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nightfill.kv.eviction import Retention

_log = logging.getLogger(__name__)

STALE_S: Final = 86400.0
RENEW_S: Final = 3600.0
MAX_ENTRIES: Final = 1 << 18
"""10 MiB; of more, pins come first, then what is worth most."""
_ABOUT: Final = 0.05
"""Values fade as time goes by, all at one pace: they are written again when one is off by more than this part."""
_HEADER: Final = struct.Struct("<8sIId")
_ENTRY: Final = struct.Struct("<32sd")
_MAGIC: Final = b"nf.keep\0"
_VERSION: Final = 1
_CHECKSUM_BYTES: Final = 16
_MAX_BYTES: Final = _HEADER.size + MAX_ENTRIES * _ENTRY.size + _CHECKSUM_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What one process wants kept, as of `written_s`, Unix seconds."""

    written_s: float
    pinned: frozenset[BlockKey]
    values: Mapping[BlockKey, float]

    def is_current(self, now_s: float) -> bool:
        """Whether it still counts. What comes from far in the future was written by a clock that is wrong."""
        return abs(now_s - self.written_s) < STALE_S

    def is_about(self, other: Ruling) -> bool:
        """Whether it says much the same."""
        return (
            self.pinned == other.pinned
            and self.values.keys() == other.values.keys()
            and all(math.isclose(value, other.values[key], rel_tol=_ABOUT) for key, value in self.values.items())
        )


def encode(ruling: Ruling) -> bytes:
    """The file's content, with at most `MAX_ENTRIES` entries. Values are finite."""
    entries = [(key, math.inf) for key in ruling.pinned]
    entries += [(key, value) for key, value in ruling.values.items() if value > 0]
    if len(entries) > MAX_ENTRIES:
        _log.debug("%d blocks are wanted, of which others are told %d", len(entries), MAX_ENTRIES)
        entries = heapq.nlargest(MAX_ENTRIES, entries, key=lambda entry: entry[1])
    head = _HEADER.pack(_MAGIC, _VERSION, len(entries), ruling.written_s)
    body = head + b"".join(_ENTRY.pack(key, value) for key, value in entries)
    return body + checksum(body)


def decode(raw: bytes) -> Ruling | None:
    """What a file says; None where it is damaged, cut short, another program's or of another version."""
    if len(raw) < _HEADER.size + _CHECKSUM_BYTES:
        return None
    magic, version, count, written_s = _HEADER.unpack_from(raw)
    body = raw[:-_CHECKSUM_BYTES]
    if (magic, version) != (_MAGIC, _VERSION) or len(body) != _HEADER.size + count * _ENTRY.size:
        return None
    if checksum(body) != raw[-_CHECKSUM_BYTES:]:
        return None
    entries = [(BlockKey(key), value) for key, value in _ENTRY.iter_unpack(body[_HEADER.size :])]
    if not math.isfinite(written_s) or not all(value >= 0 for _, value in entries):
        return None
    return Ruling(
        written_s=written_s,
        pinned=frozenset(key for key, value in entries if value == math.inf),
        values={key: value for key, value in entries if value != math.inf},
    )


class _Mark(NamedTuple):
    """Tells one file from the next under the same name."""

    inode: int
    mtime_ns: int
    size: int


class RetentionFile:
    """The file of one folder, as one process writes and heeds it. Safe to use from any thread.

    A process heeds what others wrote, not what it wrote itself: it knows its own wishes better.
    """

    def __init__(self, path: Path, *, drafts: Path) -> None:
        self._path = path
        self._drafts = drafts
        self._lock = threading.Lock()
        """Guards all that follows, and held while the file is looked at or written."""
        self._mark: _Mark | None = None
        self._theirs: Ruling | None = None
        self._ours: Ruling | None = None
        """What we wrote, while it is what lies there."""
        self._joined: tuple[Retention, Ruling, Retention] | None = None

    def heed(self, own: Retention, *, now_s: float) -> Retention:
        """`own`, and what another process wants kept. Reads the file if it has changed. Raises OSError."""
        with self._lock:
            self._look()
            theirs = self._theirs
            if theirs is None or not theirs.is_current(now_s):
                return own
            if self._joined is None or self._joined[0] is not own or self._joined[1] is not theirs:
                self._joined = (own, theirs, own.joined(theirs.pinned, theirs.values))
            return self._joined[2]

    def publish(self, own: Retention, *, now_s: float) -> None:
        """Tell other processes, unless what they were told still holds and is not old. Raises OSError."""
        values = {key: value for key, value in own.values.items() if value > 0}
        ruling = Ruling(written_s=now_s, pinned=own.pinned, values=values)
        with self._lock:
            self._look()
            ours = self._ours
            if ours is not None and 0 <= now_s - ours.written_s < RENEW_S and ruling.is_about(ours):
                return
            self._mark = self._write(encode(ruling))
            self._theirs, self._ours, self._joined = None, ruling, None

    def _look(self) -> None:
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            self._mark = self._theirs = self._ours = self._joined = None
            return
        if _mark_of(found) == self._mark:
            return
        self._mark, raw = self._read(found)
        self._theirs, self._ours, self._joined = decode(raw), None, None
        if self._theirs is None:
            _log.warning("%s: not what another process wants kept, as it should be; left alone", self._path)

    def _read(self, found: os.stat_result) -> tuple[_Mark, bytes]:
        if not stat.S_ISREG(found.st_mode):
            return _mark_of(found), b""
        # Whatever takes its place meanwhile must not make us wait.
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            return _mark_of(found), file.read() if found.st_size <= _MAX_BYTES else b""

    def _write(self, raw: bytes) -> _Mark:
        draft = self._drafts / f"retention.{os.getpid()}.{os.urandom(6).hex()}"
        try:
            written = _write_new(draft, raw)
            draft.rename(self._path)
        except BaseException:
            # Whatever goes wrong here is lesser than what brought us here.
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        return _mark_of(written)


def _write_new(path: Path, raw: bytes) -> os.stat_result:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(raw)
        file.flush()
        written = os.fstat(fd)
    if written.st_size != len(raw):
        raise OSError(errno.EIO, f"{written.st_size} of {len(raw)} bytes arrived")
    return written


def _mark_of(found: os.stat_result) -> _Mark:
    return _Mark(found.st_ino, found.st_mtime_ns, found.st_size)
