"""Who reads questions: embeds them, and judges whether two of them ask the same. And what a reading process is told.

On the wire each message is its length in 4 bytes, little-endian, and MessagePack.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.answers.embed import Vectors


class Reader(Protocol):
    """From any thread, and takes milliseconds: never on an event loop. Each call may raise ReaderUnavailable."""

    @property
    def identity(self) -> str:
        """See `Embedder.identity`."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`."""

    def judge(self, asked: str, stored: Sequence[str]) -> tuple[int | None, str]:
        """The place of the first of `stored` whose answer may serve `asked`; else None, and a word from a fixed list on
        what is against the first of all.
        """

    def mend(self) -> None:
        """Get it to work again where it does not, if it is time to try; takes seconds then."""

    def close(self) -> None:
        """Idempotent."""


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Asked of a reading process: these as vectors."""

    texts: tuple[str, ...]


class Judge(msgspec.Struct, frozen=True, tag="judge"):
    """Asked of it: which of these may serve."""

    asked: str
    stored: tuple[str, ...]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """What it says first."""

    identity: str


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """The answer to `Embed`: float32[len(texts), 384], row by row."""

    vectors: bytes


class Judged(msgspec.Struct, frozen=True, tag="judged"):
    """The answer to `Judge`."""

    place: int | None
    reason: str


class Unfit(msgspec.Struct, frozen=True, tag="unfit"):
    """What it says first when it cannot work as it is set, before it ends."""

    why: str
    param: str | None


Asked = Embed | Judge
Said = Ready | Embedded | Judged | Unfit

_LENGTH: Final = struct.Struct("<I")
MAX_BYTES: Final = 256 << 20
"""Of a message; what says to be longer is not one."""


def framed(message: Asked | Said) -> bytes:
    """As it goes over the wire. Raises ValueError for more than `MAX_BYTES`."""
    content = msgspec.msgpack.encode(message)
    if len(content) > MAX_BYTES:
        raise ValueError(f"a message of {len(content)} bytes (at most {MAX_BYTES})")
    return _LENGTH.pack(len(content)) + content


def unframed(receive: Callable[[int], bytes]) -> bytes | None:
    """One message's MessagePack; None at the end of them. `receive` gives that many bytes or fewer, none at the end.

    Raises ValueError when it is cut short or too long.
    """
    head = _exactly(receive, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_BYTES:
        raise ValueError(f"a message of {length} bytes (at most {MAX_BYTES})")
    content = _exactly(receive, length)
    if length and not content:
        raise ValueError("a message without its content")
    return content


def _exactly(receive: Callable[[int], bytes], count: int) -> bytes:
    parts, missing = [], count
    while missing:
        part = receive(min(missing, 1 << 20))
        if not part:
            if missing == count:
                return b""
            raise ValueError(f"{missing} of {count} bytes are missing")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
