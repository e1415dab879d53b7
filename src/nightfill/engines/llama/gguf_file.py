"""What a GGUF file says of itself, and the digest that names its weights.

Format: u32 magic 'GGUF', u32 version (2 or 3), u64 number of tensors, u64 number of key-value pairs, then the pairs:
a key (u64 length, UTF-8), u32 type, value. Little-endian. Tensors follow; they are not looked at.
Source: docs/gguf.md in the ggml repository.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from nightfill.errors import BadSetting

_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING: Final = 8
_ARRAY: Final = 9
_U32: Final = _SCALARS[4]
_U64: Final = _SCALARS[10]
_MAX_PAIRS: Final = 1 << 16
_MAX_STRING_KEPT: Final = 1 << 20
_PART: Final = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHead:
    """What we want to know of a model before it is loaded. Numbers that the file does not give are 0, texts empty."""

    path: Path
    version: int
    architecture: str
    name: str
    context_length: int
    """Tokens that the model was made for."""
    block_count: int
    embedding_length: int
    head_count_kv: int
    """0 also where it differs from layer to layer."""
    sliding_window: int
    """Tokens that attention looks back, in some layers at least; 0 for all of them."""
    vocabulary: int
    chat_template: bool
    tensors: int
    file_bytes: int
    """Of all parts, for a model that is split into several files."""


def read_head(path: Path) -> GgufHead:
    """Read the head of a GGUF file: milliseconds, whatever the size of model and vocabulary. Blocks on the disk.

    Of a split model, name the first part. Raises BadSetting if there is no such file, it cannot be read, is no GGUF
    file, has another version or ends too early.
    """
    version, tensors, values, lengths = _pairs(path)
    try:
        file_bytes = sum(part.stat().st_size for part in parts_of(path))
    except OSError as exc:
        raise BadSetting(f"model {path}: {exc.strerror}", param="model") from exc
    architecture = _text(values.get("general.architecture"))
    if not architecture:
        raise BadSetting(f"model {path}: names no architecture; is it an adapter or a vocabulary?", param="model")
    return GgufHead(
        path=path,
        version=version,
        architecture=architecture,
        name=_text(values.get("general.name")),
        context_length=_count(values.get(f"{architecture}.context_length")),
        block_count=_count(values.get(f"{architecture}.block_count")),
        embedding_length=_count(values.get(f"{architecture}.embedding_length")),
        head_count_kv=_count(values.get(f"{architecture}.attention.head_count_kv")),
        sliding_window=_count(values.get(f"{architecture}.attention.sliding_window")),
        vocabulary=lengths.get("tokenizer.ggml.tokens", 0),
        chat_template=bool(_text(values.get("tokenizer.chat_template"))),
        tensors=tensors,
        file_bytes=file_bytes,
    )


def adapted_architecture(path: Path) -> str:
    """Of the models that a LoRA adapter is for. Raises BadSetting as `read_head` does, and for what is no adapter."""
    _, _, values, _ = _pairs(path)
    if (values.get("general.type"), values.get("adapter.type")) != ("adapter", "lora"):
        raise BadSetting(f"model {path}: is no LoRA adapter", param="model")
    return _text(values.get("general.architecture"))


def _pairs(path: Path) -> tuple[int, int, dict[str, Scalar], dict[str, int]]:
    try:
        if not path.is_file():
            raise BadSetting(f"model {path}: {'not a file' if path.exists() else 'no such file'}", param="model")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise BadSetting(f"model {path}: too short for a GGUF file", param="model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _Reader(path, view).pairs()
    except OSError as exc:
        raise BadSetting(f"model {path}: {exc.strerror}", param="model") from exc


def _text(value: Scalar | None) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Scalar | None) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


class _Reader:
    """Reads forward through the head; what is not there raises BadSetting."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self._path = path
        self._view = view
        self._at = 0

    def _bad(self, reason: str) -> NoReturn:
        raise BadSetting(f"model {self._path}: {reason}", param="model")

    def _skip(self, count: int) -> int:
        start = self._at
        if count > len(self._view) - start:
            self._bad("truncated: ends within its head")
        self._at = start + count
        return start

    def _unpack(self, scalar: struct.Struct) -> int | float | bool:
        value: int | float | bool = scalar.unpack_from(self._view, self._skip(scalar.size))[0]
        return value

    def _u32(self) -> int:
        value: int = _U32.unpack_from(self._view, self._skip(4))[0]
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack_from(self._view, self._skip(8))[0]
        return value

    def _string(self) -> str:
        length = self._u64()
        start = self._skip(length)
        return self._view[start : start + min(length, _MAX_STRING_KEPT)].decode("utf-8", errors="replace")

    def pairs(self) -> tuple[int, int, dict[str, Scalar], dict[str, int]]:
        """(version, number of tensors, scalars and strings by key, lengths of arrays by key)."""
        if self._view[:4] != b"GGUF":
            self._bad("not a GGUF file (wrong magic)")
        self._skip(4)
        version = self._u32()
        if version not in {2, 3}:
            hint = " (big-endian?)" if version & 0xFFFF == 0 else ""
            self._bad(f"GGUF version {version}{hint}; supported are 2 and 3")
        tensors, n_pairs = self._u64(), self._u64()
        if n_pairs > _MAX_PAIRS:
            self._bad(f"{n_pairs} metadata entries, more than {_MAX_PAIRS}")
        values: dict[str, Scalar] = {}
        lengths: dict[str, int] = {}
        for _ in range(n_pairs):
            key, kind = self._string(), self._u32()
            if kind == _ARRAY:
                lengths[key] = self._skip_array(key)
            elif kind == _STRING:
                values[key] = self._string()
            elif kind in _SCALARS:
                values[key] = self._unpack(_SCALARS[kind])
            else:
                self._bad(f"metadata {key!r} has the unknown type {kind}")
        return version, tensors, values, lengths

    def _skip_array(self, key: str) -> int:
        kind, count = self._u32(), self._u64()
        if kind in _SCALARS:
            self._skip(count * _SCALARS[kind].size)
        elif kind == _STRING:
            # The one loop that is as long as the vocabulary; 300,000 entries take some 0.1 s.
            view, at, end, unpack = self._view, self._at, len(self._view), _U64.unpack_from
            for _ in range(count):
                if at + 8 > end:
                    self._bad("truncated: ends within its head")
                at += 8 + unpack(view, at)[0]
            self._skip(at - self._at)
        else:
            self._bad(f"metadata {key!r} is an array of the unknown type {kind}")
        return count


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of a model: those named `…-00001-of-00003.gguf` belong together, in order; any other stands alone.

    Raises BadSetting when a part is missing, or `path` is not the first.
    """
    match = _PART.match(path.name)
    if match is None:
        return (path,)
    n_parts = int(match["parts"])
    if int(match["part"]) != 1 or n_parts < 1:
        raise BadSetting(f"model {path}: is a later part of a split model; name the first", param="model")
    parts = tuple(path.with_name(f"{match['stem']}-{part:05}-of-{n_parts:05}.gguf") for part in range(1, n_parts + 1))
    for part in parts:
        if not part.is_file():
            raise BadSetting(f"model {path}: its part {part.name} is missing", param="model")
    return parts


def weights_digest(path: Path, cache_dir: Path) -> str:
    """SHA-256 of the model's bytes, in hex; of a split model, of the digests of its parts.

    Reads the whole file the first time (a gigabyte a second or so; the interpreter lock is free), and remembers the
    result under `cache_dir` for as long as path, size, time of change and inode stay what they are. A cache that cannot
    be written is not an error. Raises BadSetting as `read_head` does.
    """
    parts = parts_of(path)
    digests = [_file_digest(part, cache_dir) for part in parts]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


class _Remembered(msgspec.Struct, frozen=True):
    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str


def _file_digest(path: Path, cache_dir: Path) -> str:
    try:
        with path.open("rb") as file:
            before = _identity(path, os.fstat(file.fileno()))
            note = cache_dir / f"sha256-{hashlib.sha256(before.path.encode()).hexdigest()[:24]}.json"
            known = _recall(note)
            if known is not None and msgspec.structs.replace(known, sha256="") == before:
                return known.sha256
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = _identity(path, os.fstat(file.fileno()))
    except OSError as exc:
        raise BadSetting(f"model {path}: {exc.strerror}", param="model") from exc
    if before != after:
        raise BadSetting(f"model {path}: was changed while it was read", param="model")
    # Without its note the file is only hashed again, at the next start.
    with contextlib.suppress(OSError):
        _remember(note, msgspec.structs.replace(before, sha256=digest))
    return digest


def _identity(path: Path, stat: os.stat_result) -> _Remembered:
    return _Remembered(os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino, "")


def _recall(note: Path) -> _Remembered | None:
    try:
        known = msgspec.json.decode(note.read_bytes(), type=_Remembered)
    except (OSError, msgspec.DecodeError):
        return None  # never hashed, or a note that is of no use
    return known if re.fullmatch("[0-9a-f]{64}", known.sha256) else None


def _remember(note: Path, known: _Remembered) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=".", suffix=".draft", dir=note.parent)
    try:
        with os.fdopen(fd, "wb") as draft:
            draft.write(msgspec.json.encode(known))
        Path(name).replace(note)
    finally:
        Path(name).unlink(missing_ok=True)
