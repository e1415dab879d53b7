"""Whole reads and writes at the page boundary, past the page cache where the file system allows it.

KV is read once into memory of ours; a second copy in the page cache would only push out the model's weights.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from nightfill.kv.buffer import ALIGNMENT, Buffers

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)


def read_all(fd: int, out: memoryview) -> None:
    """Fill `out` from the start of the file. Raises OSError; EOFError when the file ends before."""
    done = 0
    while done < len(out):
        count = os.preadv(fd, [out[done:]], done)
        if count == 0:
            raise EOFError(f"file ends after {done} of {len(out)} bytes")
        done += count


def write_all(fd: int, data: memoryview) -> None:
    """Write `data` to the start of the file. Raises OSError; EOFError when the device takes no more."""
    done = 0
    while done < len(data):
        count = os.pwritev(fd, [data[done:]], done)
        if count == 0:
            raise EOFError(f"device took {done} of {len(data)} bytes")
        done += count


def probe(directory: Path) -> bool:
    """Whether files in `directory` can be written and read with `O_DIRECT`; tries it with one page.

    Raises OSError when no file can be written there at all.
    """
    path = directory / f"probe.{os.getpid()}.{os.urandom(4).hex()}"
    page = Buffers(max_idle_bytes=0).take(ALIGNMENT)
    page[:] = os.urandom(ALIGNMENT)
    back = Buffers(max_idle_bytes=0).take(ALIGNMENT)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        direct = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        try:
            write_all(direct, page)
            read_all(direct, back)
        finally:
            os.close(direct)
    except (OSError, EOFError) as error:
        _log.warning("no O_DIRECT in %s (%s): KV goes through the page cache there", directory, error)
        return False
    else:
        return back == page
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
