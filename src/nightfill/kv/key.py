"""Keys of KV blocks: a chained SHA-256 over the tokens, seeded with signature and salt.

Two prefixes that agree on their first tokens agree on the keys of the blocks that lie wholly within them, so that what
they share is stored once; and a key says nothing about any token to somebody who lacks salt and signature.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NewType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts.context import Signature, Tenant

BlockKey = NewType("BlockKey", bytes)
"""32 bytes."""

BLOCK_TOKENS: Final = 256


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` (included) to `stop` (excluded) of a prefix, and the key of their KV."""

    key: BlockKey
    start: int
    stop: int


def salt_of(tenant: Tenant) -> bytes:
    """The salt that keeps a tenant's blocks apart from all others'; 32 bytes. Not a secret."""
    return hashlib.sha256(b"nightfill.salt.1\0" + tenant.encode()).digest()


def _seed(signature: Signature, salt: bytes, kind: bytes) -> bytes:
    return hashlib.sha256(b"nightfill.kv.1\0" + kind + b"\0" + bytes.fromhex(signature) + salt).digest()


def _packed(tokens: Sequence[int]) -> memoryview:
    packed = array("I", tokens)
    assert packed.itemsize == 4
    return memoryview(packed).cast("B")


def spans(
    tokens: Sequence[int], *, signature: Signature, salt: bytes, block_tokens: int = BLOCK_TOKENS
) -> tuple[Span, ...]:
    """Cut `tokens` into blocks of `block_tokens`; the last one holds the rest and so may be shorter.

    A key is SHA-256(previous key, token ids as little-endian u32). The short last block has a key of its own kind only
    through its length: it is never taken for the full block that a longer prefix has there.
    """
    raw = _packed(tokens)
    previous = _seed(signature, salt, b"block")
    out = []
    for start in range(0, len(tokens), block_tokens):
        stop = min(start + block_tokens, len(tokens))
        previous = hashlib.sha256(previous + raw[4 * start : 4 * stop]).digest()
        out.append(Span(BlockKey(previous), start, stop))
    return tuple(out)


def snapshot_key(tokens: Sequence[int], *, signature: Signature, salt: bytes) -> BlockKey:
    """Key of the KV of exactly these tokens as one piece, for models whose cache cannot be cut."""
    return BlockKey(hashlib.sha256(_seed(signature, salt, b"snapshot") + _packed(tokens)).digest())


def snapshot_keys(
    tokens: Sequence[int], *, signature: Signature, salt: bytes, every: int = BLOCK_TOKENS
) -> tuple[tuple[int, BlockKey], ...]:
    """(length, snapshot key of the first `length` tokens) for each multiple of `every` below `len(tokens)`."""
    digest = hashlib.sha256(_seed(signature, salt, b"snapshot"))
    raw = _packed(tokens)
    out = []
    for length in range(every, len(tokens), every):
        digest.update(raw[4 * (length - every) : 4 * length])
        out.append((length, BlockKey(digest.copy().digest())))
    return tuple(out)
