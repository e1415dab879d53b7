"""Whether a LoRA adapter's file is what it was when it was registered."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nightfill.engines.llama.child_config import AdapterFile

Mark = tuple[int, ...]
"""Changes with every change of a file."""


def sha256_of(path: str | Path) -> str | None:
    """Of its content, in hex; None where it cannot be read. Blocks: half a second per gigabyte."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def intact(adapters: Iterable[AdapterFile]) -> tuple[dict[str, Mark], tuple[AdapterFile, ...]]:
    """Those whose content is right, and the marks of their files from before they were looked at."""
    marks, right = {}, []
    for one in adapters:
        mark = _mark_of(one.path)
        if mark is not None and sha256_of(one.path) == one.sha256:
            marks[one.path] = mark
            right.append(one)
    return marks, tuple(right)


def intact_since(marks: Mapping[str, Mark]) -> bool:
    """Whether the files are as they were: whoever has read them meanwhile has read what was looked at."""
    return all(_mark_of(path) == mark for path, mark in marks.items())


def _mark_of(path: str) -> Mark | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
