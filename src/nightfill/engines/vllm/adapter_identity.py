"""What a LoRA adapter on a vLLM server is: the content of its folder, and a name that says so.

vLLM's caches know an adapter by name and path. Under a name that says what is in it, one that takes another's place
shares no KV with it. Gateway, worker and plug-in use this alike; standard library only.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

Mark = tuple[str | int, ...]
"""Of one file; changes with every change of it."""

_PARTS: Final = (".json", ".safetensors", ".bin", ".pt")
_DIGITS: Final = 32
_NAMED: Final = re.compile(rf".+@([0-9a-f]{{{_DIGITS}}})", re.DOTALL)


def adapter_digest(folder: Path, known: MutableMapping[Mark, str] | None = None) -> str:
    """SHA-256 over names and contents of what is in an adapter's folder, 64 hex digits.

    Files in `known` are not read again; those that are read are added to it. Raises OSError. Blocks: half a second per
    gigabyte.
    """
    whole = hashlib.sha256(b"nightfill.adapter.1\0")
    for path in sorted(path for path in folder.iterdir() if path.suffix in _PARTS):
        mark = _mark_of(path)
        digest = None if known is None else known.get(mark)
        if digest is None:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if known is not None:
                known[mark] = digest
        whole.update(path.name.encode() + b"\0" + digest.encode() + b"\0")
    return whole.hexdigest()


def marks_of(folder: Path) -> tuple[Mark, ...]:
    """Of all its files; as long as they stay the same, so does the adapter. Raises OSError."""
    return tuple(_mark_of(path) for path in sorted(folder.iterdir()) if path.suffix in _PARTS)


def _mark_of(path: Path) -> Mark:
    status = path.stat()
    return str(path), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def name_of(name: str, digest: str) -> str:
    """How the adapter is asked for at a server, that requests here call `name`; `digest` is of its content."""
    return f"{name}@{digest[:_DIGITS]}"


def may_hold(name: str, digest: str) -> bool:
    """Whether an adapter that a server calls `name` may have this content. Other people's names do not tell."""
    named = _NAMED.fullmatch(name)
    return named is None or digest.startswith(named[1])
