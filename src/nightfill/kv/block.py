"""A block of KV and its stored form: a header of one page, then the payload, padded to whole pages.

offset  bytes   field (integers little-endian)
     0      8   magic "nf.block"
     8      2   format version
    10      1   seal: 1 XXH3-128, 2 AES-256-GCM
    11      1   kind: 1 block, 2 snapshot
    12      4   length of the layout
    16      8   length of the payload as given, without padding
    24      8   start: first token
    32      8   stop: one past the last token
    40     32   block key
    72     32   signature
   104      8   key id: which master key sealed it; zero without one
   112     12   nonce; zero without a key
   124    ...   layout, opaque bytes of the engine, then zeros
  4080     16   checksum or tag over the first 4080 bytes and the payload
  4096    ...   payload, page-aligned so that it can move by O_DIRECT; what pads its last page is not sealed
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

from nightfill.errors import BlockCorrupt
from nightfill.kv.buffer import ALIGNMENT, padded
from nightfill.kv.key import BlockKey

if TYPE_CHECKING:
    from nightfill.contexts.context import Signature

HEADER_BYTES: Final = ALIGNMENT
COVERED_BYTES: Final = 4080
"""The part of the header that checksum or tag cover; they follow it."""
TAG_BYTES: Final = HEADER_BYTES - COVERED_BYTES
MAX_LAYOUT_BYTES: Final = 3072
FORMAT_VERSION: Final = 1

_MAGIC: Final = b"nf.block"
_FIXED: Final = struct.Struct("<8sHBBIQQQ32s32s8s12s")

Kind = Literal["block", "snapshot"]
_KIND_CODES: Final[dict[Kind, int]] = {"block": 1, "snapshot": 2}
_KINDS: Final = {code: kind for kind, code in _KIND_CODES.items()}


class SealKind(enum.IntEnum):
    """How stored bytes are protected."""

    XXH3 = 1
    AES_GCM = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMeta:
    """What a block holds. Raises ValueError when a field is out of its range."""

    kind: Kind
    signature: Signature
    start: int
    """First token of the prefix that it covers."""
    stop: int
    """One past the last."""
    layout: bytes = b""
    """How the engine lays out the payload, in the engine's own terms; at most `MAX_LAYOUT_BYTES`."""

    def __post_init__(self) -> None:
        if self.kind not in _KIND_CODES:
            raise ValueError(f"block kind {self.kind!r} is neither 'block' nor 'snapshot'")
        if len(bytes.fromhex(self.signature)) != 32:
            raise ValueError(f"signature {self.signature!r} is not 64 hex digits")
        if not 0 <= self.start <= self.stop < 1 << 63:
            raise ValueError(f"tokens {self.start} to {self.stop} are no range")
        if len(self.layout) > MAX_LAYOUT_BYTES:
            raise ValueError(f"a layout of {len(self.layout)} bytes is over {MAX_LAYOUT_BYTES}")


@dataclass(frozen=True, slots=True)
class Block:
    """A verified block. `payload` is a read-only view whose memory lives as long as the view."""

    meta: BlockMeta
    payload: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first page of a stored block, without its tag."""

    key: BlockKey
    meta: BlockMeta
    payload_bytes: int
    seal: SealKind
    key_id: bytes = bytes(8)
    nonce: bytes = bytes(12)

    def pack(self) -> bytes:
        """The `COVERED_BYTES` bytes that stand before the tag."""
        fixed = _FIXED.pack(
            _MAGIC,
            FORMAT_VERSION,
            self.seal,
            _KIND_CODES[self.meta.kind],
            len(self.meta.layout),
            self.payload_bytes,
            self.meta.start,
            self.meta.stop,
            self.key,
            bytes.fromhex(self.meta.signature),
            self.key_id,
            self.nonce,
        )
        return (fixed + self.meta.layout).ljust(COVERED_BYTES, b"\0")

    @classmethod
    def parse(cls, sealed: memoryview) -> Header:
        """Read a header that is not verified yet: trust it only to find out how to verify it.

        Raises BlockCorrupt when it is none of ours, or does not fit the length of `sealed`.
        """
        if len(sealed) < HEADER_BYTES:
            raise BlockCorrupt(f"{len(sealed)} bytes are too few for a block")
        (magic, version, seal, kind, layout_bytes, payload_bytes, start, stop, key, signature, key_id, nonce) = (
            _FIXED.unpack_from(sealed)
        )
        if magic != _MAGIC:
            raise BlockCorrupt("not a block: its first bytes are others")
        if version != FORMAT_VERSION:
            raise BlockCorrupt(f"block format {version} is not {FORMAT_VERSION}")
        if sealed_bytes(payload_bytes) != len(sealed):
            raise BlockCorrupt(f"{len(sealed)} bytes stored for a payload of {payload_bytes}")
        if layout_bytes > MAX_LAYOUT_BYTES:
            raise BlockCorrupt(f"a layout of {layout_bytes} bytes is over {MAX_LAYOUT_BYTES}")
        try:
            return cls(
                key=BlockKey(key),
                meta=BlockMeta(
                    kind=_KINDS[kind],
                    signature=cast("Signature", signature.hex()),
                    start=start,
                    stop=stop,
                    layout=bytes(sealed[_FIXED.size : _FIXED.size + layout_bytes]),
                ),
                payload_bytes=payload_bytes,
                seal=SealKind(seal),
                key_id=key_id,
                nonce=nonce,
            )
        except (KeyError, ValueError) as error:
            raise BlockCorrupt(f"header out of range: {error}") from error


def sealed_bytes(payload_bytes: int) -> int:
    """Stored length of a block with so large a payload, in every tier and under every seal."""
    return HEADER_BYTES + padded(payload_bytes)
