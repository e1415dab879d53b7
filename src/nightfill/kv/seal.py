"""Seals: what makes a flipped byte, a truncated file or another's block a miss.

Without a key, a block carries an XXH3-128 checksum over header, payload and salt. With one, see `cipher`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import xxhash

from nightfill.errors import BlockCorrupt, KeyUnknown
from nightfill.kv.block import COVERED_BYTES, HEADER_BYTES, Block, Header, SealKind, owner_of, seal_in, sealed_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from nightfill.kv.block import BlockMeta
    from nightfill.kv.buffer import Buffers
    from nightfill.kv.key import BlockKey

TAIL_BYTES: Final = 16
"""OpenSSL's wrapper wants so much room behind what it writes."""
TEXT_MAGIC: Final = b"\0nf.txt1"


class Sealer(Protocol):
    """Turns a block into bytes that cannot change unnoticed, and back. Safe to use from any thread."""

    @property
    def encrypts(self) -> bool:
        """Whether nobody can read what is stored without a key."""

    def seal(self, key: BlockKey, meta: BlockMeta, parts: Sequence[memoryview], *, salt: bytes) -> memoryview:
        """Copy `parts`, flat views of bytes, one after the other into a new sealed buffer.

        Raises TierUnavailable when there is no memory for it.
        """

    def open(self, key: BlockKey, sealed: memoryview, *, salt: bytes) -> Block:
        """Verify `sealed` and return what it holds. Its payload may be a view into `sealed`.

        Raises BlockCorrupt unless `sealed` is exactly what `seal` made for this key and salt; KeyUnknown when it is
        under a master key that is not ours, and so nobody here can tell.
        """

    def open_into(self, key: BlockKey, sealed: memoryview, out: memoryview, *, salt: bytes) -> BlockMeta | None:
        """`open`, with the payload put into `out`, a flat writable view of bytes.

        None, and `out` as it was, when the payload is of another length. Raises as `open`; `out` is garbage then.
        """

    def current(self, head: memoryview) -> bool:
        """Whether a block that begins with `head` is sealed as `seal` would do it now, as far as its header says."""


class ChecksumSealer:
    """XXH3-128: finds damage, not malice."""

    encrypts: Final = False

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers

    def seal(self, key: BlockKey, meta: BlockMeta, parts: Sequence[memoryview], *, salt: bytes) -> memoryview:
        """See `Sealer`."""
        payload_bytes = sum(len(part) for part in parts)
        header = Header(key=key, meta=meta, payload_bytes=payload_bytes, seal=SealKind.XXH3, owner=owner_of(salt))
        sealed, _ = blank(header, self._buffers)
        at = HEADER_BYTES
        for part in parts:
            sealed[at : at + len(part)] = part
            at += len(part)
        sealed[COVERED_BYTES:HEADER_BYTES] = _digest(sealed, payload_bytes, salt)
        return sealed

    def open(self, key: BlockKey, sealed: memoryview, *, salt: bytes) -> Block:
        """See `Sealer`."""
        header = self._verified(key, sealed, salt)
        return Block(header.meta, sealed[HEADER_BYTES : HEADER_BYTES + header.payload_bytes].toreadonly())

    def open_into(self, key: BlockKey, sealed: memoryview, out: memoryview, *, salt: bytes) -> BlockMeta | None:
        """See `Sealer`. Hashes first, so `out` is never garbage."""
        header = self._verified(key, sealed, salt)
        if header.payload_bytes != len(out):
            return None
        out[:] = sealed[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
        return header.meta

    def current(self, head: memoryview) -> bool:
        """See `Sealer`."""
        return seal_in(head) == SealKind.XXH3

    def _verified(self, key: BlockKey, sealed: memoryview, salt: bytes) -> Header:
        header = matching_header(key, sealed, SealKind.XXH3)
        if _digest(sealed, header.payload_bytes, salt) != sealed[COVERED_BYTES:HEADER_BYTES]:
            raise BlockCorrupt("checksum differs")
        return header


class TextSealer(Protocol):
    """Seals short texts and token lists for rest in a database. Safe to use from any thread."""

    def seal_text(self, data: bytes) -> bytes:
        """What to store in place of `data`."""

    def open_text(self, sealed: bytes) -> bytes:
        """The inverse. Raises BlockCorrupt when it was changed, or sealed under another key or none."""

    def current_text(self, sealed: bytes) -> bool:
        """Whether it is under the key that `seal_text` uses now."""


class PlainTexts:
    """No key is set: a `TextSealer` that changes nothing, and says so when it meets what was encrypted."""

    def seal_text(self, data: bytes) -> bytes:
        """See `TextSealer`."""
        return data

    def current_text(self, sealed: bytes) -> bool:
        """See `TextSealer`."""
        return not sealed.startswith(TEXT_MAGIC)

    def open_text(self, sealed: bytes) -> bytes:
        """See `TextSealer`."""
        if sealed.startswith(TEXT_MAGIC):
            raise BlockCorrupt("text is encrypted, and no key file is set")
        return sealed


def blank(header: Header, buffers: Buffers) -> tuple[memoryview, memoryview]:
    """A sealed buffer with its header written and its padding zeroed, and the same with room behind it."""
    length = sealed_bytes(header.payload_bytes)
    room = buffers.take(length + TAIL_BYTES)
    room[:COVERED_BYTES] = header.pack()
    end = HEADER_BYTES + header.payload_bytes
    room[end:length] = bytes(length - end)
    return room[:length], room


def matching_header(key: BlockKey, sealed: memoryview, seal: SealKind) -> Header:
    """The header of `sealed`, if it is of this key and seal. Raises BlockCorrupt.

    What is encrypted where no key is set raises KeyUnknown; what is in the clear where one is set is corrupt, and goes.
    """
    header = Header.parse(sealed)
    if header.key != key:
        raise BlockCorrupt("the block stored under this key is another's")
    if header.seal != seal:
        kind = KeyUnknown if header.seal == SealKind.AES_GCM else BlockCorrupt
        raise kind(f"sealed by {header.seal.name}, where {seal.name} is set")
    return header


def checksum(data: Buffer) -> bytes:
    """16 bytes that tell damage, not malice."""
    return xxhash.xxh3_128_digest(data)


def _digest(sealed: memoryview, payload_bytes: int, salt: bytes) -> bytes:
    hasher = xxhash.xxh3_128(salt)
    hasher.update(sealed[:COVERED_BYTES])
    hasher.update(sealed[HEADER_BYTES : HEADER_BYTES + payload_bytes])
    return hasher.digest()
