"""Whether a LoRA adapter's file is what it was when it was registered."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.engines.llama.child_config import AdapterFile

Mark = tuple[int, ...]


def mark_of(adapter: AdapterFile) -> Mark | None:
    """Changes with every change of the file; None where there is none."""
    try:
        status = Path(adapter.path).stat()
    except OSError:
        return None
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def sha256_of(path: str | Path) -> str | None:
    """Of its content, in hex; None where it cannot be read. Blocks: half a second per gigabyte."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def intact(adapters: Sequence[AdapterFile], marks: Sequence[Mark | None]) -> tuple[AdapterFile, ...]:
    """Those whose content is right, and was so since their `marks` were taken: who read them meanwhile, read that."""
    return tuple(
        one
        for one, mark in zip(adapters, marks, strict=True)
        if sha256_of(one.path) == one.sha256 and mark_of(one) == mark
    )
