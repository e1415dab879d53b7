"""Digests of what a model's KV depends on: weights and settings. By content, so that a path says nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Final

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_SETTINGS: Final = ("config.json", "quantize_config.json", "quantization_config.json", "hf_quant_config.json")
_BLOB: Final = re.compile(r"[0-9a-f]{64}")


def model_files(folder: Path) -> list[Path]:
    """Weights and settings in a model's folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS or path.name in _SETTINGS)


def digest_of(files: Iterable[Path], *, cache: Path | None = None) -> str:
    """One digest over names and contents, 64 hex digits.

    Large files are read once: what was found is kept in `cache`, a JSON file, under path, size, inode and both times
    of change. Files of a Hugging Face cache are named by their SHA-256, and are not read at all. Raises OSError.
    """
    known = _read(cache)
    whole = hashlib.sha256(b"nightfill.weights.1\0")
    for path in files:
        whole.update(path.name.encode() + b"\0" + _digest(path, known).encode() + b"\0")
    _write(cache, known)
    return whole.hexdigest()


def _digest(path: Path, known: dict[str, str]) -> str:
    target = path.resolve()
    if target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
        return f"sha256:{target.name}"
    status = target.stat()
    mark = f"{target}|{status.st_size}|{status.st_ino}|{status.st_mtime_ns}|{status.st_ctime_ns}"
    if mark not in known:
        hasher = blake3(max_threads=blake3.AUTO)
        hasher.update_mmap(target)
        known[mark] = f"blake3:{hasher.hexdigest()}"
    return known[mark]


def _read(cache: Path | None) -> dict[str, str]:
    if cache is None:
        return {}
    try:
        found = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}  # it is only a cache: the files are read again
    return {str(mark): str(digest) for mark, digest in found.items()} if isinstance(found, dict) else {}


def _write(cache: Path | None, known: dict[str, str]) -> None:
    if cache is None or not known:
        return
    cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = cache.with_name(f"{cache.name}.{os.getpid()}")
    draft.write_text(json.dumps(known))
    draft.chmod(0o600)
    draft.rename(cache)
