"""The folder through which slot files pass: in memory where there is room, as they are whole KV caches in the clear."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from nightfill.errors import BadSetting

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  our folder in it is made with mode 0700 and a random name
_PREFIX: Final = "nightfill-"


def make(chosen: str, *, data_dir: Path, need_bytes: int) -> Path:
    """A new private folder (mode 0700): under `chosen` if given, else in shared memory if that has room for
    `need_bytes` twice over, else under `data_dir`. Folders that dead processes left are removed first.

    Raises BadSetting when `chosen` cannot be written to.
    """
    base = Path(chosen) if chosen else _default(data_dir, need_bytes)
    try:
        base.mkdir(parents=True, exist_ok=True)
        clean(base)
        return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
    except OSError as exc:
        raise BadSetting(f"scratch_dir: cannot write to {base}: {exc.strerror}", param="scratch_dir") from exc


def _default(data_dir: Path, need_bytes: int) -> Path:
    writable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    if writable and shutil.disk_usage(SHARED_MEMORY).free >= 2 * need_bytes:
        return SHARED_MEMORY
    return data_dir / "scratch"


def clean(base: Path) -> int:
    """Remove the folders of processes that are gone; how many were removed."""
    removed = 0
    for folder in base.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed
