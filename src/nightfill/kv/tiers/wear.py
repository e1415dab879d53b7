"""How much a disk tier has written today, against the wear of SSDs.

*How exact.* The count lies in one small file beside the blocks, and is read and written under a lock of that file: so
it survives a restart, and processes of one host share it to the byte. It counts the bytes of blocks, not what the file
system or the device write besides. It is not synced: a power cut may lose the last seconds of it. A folder that is
deleted takes its count along.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from nightfill.errors import TierFull

if TYPE_CHECKING:
    from pathlib import Path

_RECORD: Final = struct.Struct("<8sQQ")
_MAGIC: Final = b"nf.wear1"
_DAY_S: Final = 86400


class WriteBudget:
    """At most `bytes_per_day` bytes per UTC day; 0 for no bound. Safe to use from threads and processes."""

    def __init__(self, path: Path, *, name: str, bytes_per_day: int) -> None:
        self._path = path
        self._name = name
        self._bytes_per_day = bytes_per_day

    def charge(self, nbytes: int, *, now_s: float) -> None:
        """Take `nbytes` from today's budget. Raises TierFull, and takes nothing, when so much is not left; OSError."""
        self._add(nbytes, now_s)

    def refund(self, nbytes: int, *, now_s: float) -> None:
        """Give back what was taken for a write that did not come to be. Raises OSError."""
        self._add(-nbytes, now_s)

    def _add(self, nbytes: int, now_s: float) -> None:
        if not self._bytes_per_day:
            return
        today = int(now_s // _DAY_S)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            used = used_on(today, os.pread(fd, _RECORD.size, 0))
            if nbytes > 0 and used + nbytes > self._bytes_per_day:
                resets = datetime.datetime.fromtimestamp((today + 1) * _DAY_S, tz=datetime.UTC)
                raise TierFull(
                    f"{self._name}: the write budget of {self._bytes_per_day} bytes a day has "
                    f"{max(0, self._bytes_per_day - used)} left, too few for {nbytes}; "
                    f"it resets at {resets:%Y-%m-%dT%H:%MZ}"
                )
            os.pwrite(fd, _RECORD.pack(_MAGIC, today, max(0, used + nbytes)), 0)
        finally:
            os.close(fd)


def used_on(day: int, raw: bytes) -> int:
    """Bytes written on a day, counted from 1970, as the file's content tells; 0 when it tells of another or nothing."""
    if len(raw) != _RECORD.size:
        return 0
    magic, counted, used = _RECORD.unpack(raw)
    return int(used) if (magic, counted) == (_MAGIC, day) else 0
