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
   124      8   owner: tag of the salt, by which a tier tells tenants apart; zero where unknown
   132     24   dtype, ASCII, then zeros
   156      4   dimensions, at most 8
   160     64   shape: 8 dimensions of 8 bytes, then zeros
   224    ...   layout, opaque bytes of the engine, then zeros
  4080     16   checksum or tag over the first 4080 bytes and the payload
  4096    ...   payload, page-aligned so that it can move by O_DIRECT; what pads its last page is not sealed

Format 1, which is still read, has no owner, dtype and shape, and its layout begins at 124.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import re
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
MAX_DIMS: Final = 8
FORMAT_VERSION: Final = 2
OWNER_BYTES: Final = 8
NO_OWNER: Final = bytes(OWNER_BYTES)

_MAGIC: Final = b"nf.block"
_FIXED: Final = struct.Struct("<8sHBBIQQQ32s32s8s12s")
_MORE: Final = struct.Struct("<8s24sI8Q")
"""What format 2 has behind it."""
_KEY_ID: Final = slice(104, 112)
_DTYPE: Final = re.compile(r"[A-Za-z0-9_.-]{0,24}")

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
    dtype: str = ""
    """Of the payload's elements, such as `bfloat16` or `float8_e4m3fn`; empty where the layout tells."""
    shape: tuple[int, ...] = ()
    """Of the payload, at most `MAX_DIMS` dimensions; empty where the layout tells."""

    def __post_init__(self) -> None:
        if self.kind not in _KIND_CODES:
            raise ValueError(f"block kind {self.kind!r} is neither 'block' nor 'snapshot'")
        if len(bytes.fromhex(self.signature)) != 32:
            raise ValueError(f"signature {self.signature!r} is not 64 hex digits")
        if not 0 <= self.start <= self.stop < 1 << 63:
            raise ValueError(f"tokens {self.start} to {self.stop} are no range")
        if len(self.layout) > MAX_LAYOUT_BYTES:
            raise ValueError(f"a layout of {len(self.layout)} bytes is over {MAX_LAYOUT_BYTES}")
        if not _DTYPE.fullmatch(self.dtype):
            raise ValueError(f"dtype {self.dtype!r} is not at most 24 letters, digits, '_', '.' or '-'")
        if len(self.shape) > MAX_DIMS or not all(0 <= size < 1 << 63 for size in self.shape):
            raise ValueError(f"a shape of {self.shape} is out of range")


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
    owner: bytes = NO_OWNER

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
        dims = len(self.meta.shape)
        more = _MORE.pack(self.owner, self.meta.dtype.encode(), dims, *self.meta.shape, *[0] * (MAX_DIMS - dims))
        return (fixed + more + self.meta.layout).ljust(COVERED_BYTES, b"\0")

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
        if version not in {1, FORMAT_VERSION}:
            raise BlockCorrupt(f"block format {version} is neither 1 nor {FORMAT_VERSION}")
        if sealed_bytes(payload_bytes) != len(sealed):
            raise BlockCorrupt(f"{len(sealed)} bytes stored for a payload of {payload_bytes}")
        if layout_bytes > MAX_LAYOUT_BYTES:
            raise BlockCorrupt(f"a layout of {layout_bytes} bytes is over {MAX_LAYOUT_BYTES}")
        owner, dtype, dims, sizes, layout_at = NO_OWNER, b"", 0, [0], _FIXED.size
        if version == FORMAT_VERSION:
            owner, dtype, dims, *sizes = _MORE.unpack_from(sealed, layout_at)
            if dims > MAX_DIMS:
                raise BlockCorrupt(f"a shape of {dims} dimensions is over {MAX_DIMS}")
            layout_at += _MORE.size
        try:
            return cls(
                key=BlockKey(key),
                meta=BlockMeta(
                    kind=_KINDS[kind],
                    signature=cast("Signature", signature.hex()),
                    start=start,
                    stop=stop,
                    layout=bytes(sealed[layout_at : layout_at + layout_bytes]),
                    dtype=dtype.rstrip(b"\0").decode("ascii"),
                    shape=tuple(sizes[:dims]),
                ),
                payload_bytes=payload_bytes,
                seal=SealKind(seal),
                key_id=key_id,
                nonce=nonce,
                owner=owner,
            )
        except (KeyError, ValueError) as error:
            raise BlockCorrupt(f"header out of range: {error}") from error


def sealed_bytes(payload_bytes: int) -> int:
    """Stored length of a block with so large a payload, in every tier and under every seal."""
    return HEADER_BYTES + padded(payload_bytes)


@functools.lru_cache(maxsize=1024)
def owner_of(salt: bytes) -> bytes:
    """The tag by which tiers tell whose a block is, without knowing the salt; 8 bytes. Not a secret."""
    return hashlib.sha256(b"nightfill.owner.1\0" + salt).digest()[:OWNER_BYTES]


def owner_in(head: memoryview) -> bytes:
    """Whose tag a stored block bears, from its first page, unverified; `NO_OWNER` for format 1 and what is no block."""
    if len(head) < _FIXED.size + _MORE.size or bytes(head[:8]) != _MAGIC or head[8] == 1:
        return NO_OWNER
    return bytes(head[_FIXED.size : _FIXED.size + OWNER_BYTES])


def seal_in(head: memoryview) -> int:
    """How a stored block says that it is sealed, in its first page, unverified."""
    return head[10]


def key_id_in(head: memoryview) -> bytes:
    """Which master key a stored block names in its first page, unverified."""
    return bytes(head[_KEY_ID])
