"""Files of the index: written whole or not at all, and sealed piece by piece where there is a key.

A sealed file is a run of pieces, each behind its length in 4 bytes; what is in them, one after the other, is what a
file without a key would hold.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from nightfill.state.seal import RenewableSeal

PIECE: Final = 1 << 20
_MOST: Final = PIECE + (1 << 10)
"""Bytes of a sealed piece."""


def write_whole(path: Path, parts: Iterable[bytes | memoryview], seal: RenewableSeal | None) -> None:
    """Write a draft beside `path`, for the owner alone, and rename it. Raises OSError."""
    with drafted(path) as draft, open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        for part in parts:
            if seal is None:
                file.write(part)
                continue
            for begin in range(0, len(part), PIECE):
                sealed = seal.seal(bytes(part[begin : begin + PIECE]))
                file.write(len(sealed).to_bytes(4, "little"))
                file.write(sealed)


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A name to write under; what is there at the end takes the place of `path`, and survives a power cut. Nothing is
    left of what failed.
    """
    draft = path.with_suffix(".draft")
    try:
        yield draft
        draft.chmod(0o600)
        file = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        draft.replace(path)
    except BaseException:
        # Half of it is of no use, and takes the room of others on a disk that is full.
        draft.unlink(missing_ok=True)
        raise


class Reader:
    """What `write_whole` wrote, from its beginning. Methods raise OSError, ValueError or what `seal.open` does."""

    def __init__(self, file: BinaryIO, seal: RenewableSeal | None) -> None:
        self._file = file
        self._seal = seal
        self._rest = memoryview(b"")

    def read(self, count: int) -> bytes:
        """So many bytes, or fewer at the end."""
        out = bytearray(count)
        return bytes(out[: self.read_into(memoryview(out))])

    def read_into(self, out: memoryview) -> int:
        """Fill `out`; how many bytes there were."""
        if self._seal is None:
            return self._file.readinto(out)  # type: ignore[attr-defined, no-any-return]
        filled = 0
        while filled < len(out) and (self._rest or self._next(self._seal)):
            some = self._rest[: len(out) - filled]
            out[filled : filled + len(some)] = some
            filled += len(some)
            self._rest = self._rest[len(some) :]
        return filled

    def read_all(self) -> bytes:
        """All that is left."""
        if self._seal is None:
            return self._file.read()
        parts = [bytes(self._rest)]
        while self._next(self._seal):
            parts.append(bytes(self._rest))
        self._rest = memoryview(b"")
        return b"".join(parts)

    def _next(self, seal: RenewableSeal) -> bool:
        length = self._file.read(4)
        if not length:
            return False
        size = int.from_bytes(length, "little")
        sealed = self._file.read(min(size, _MOST))
        if len(sealed) != size:
            raise ValueError("it ends within a piece")
        self._rest = memoryview(seal.open(sealed))
        if not seal.current(sealed):
            # Whoever asks makes it anew, so that the old key can go.
            raise ValueError("sealed under an old key")
        return True
