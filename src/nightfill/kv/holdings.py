"""Which keys the store may have of a prefix, however its model's cache is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.kv.key import BLOCK_TOKENS, salt_of, snapshot_key, spans

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nightfill.contexts.context import Fill
    from nightfill.kv.key import BlockKey


def keys_of(fill: Fill, *, block_tokens: int = BLOCK_TOKENS) -> frozenset[BlockKey]:
    """All keys under which KV of this fill may lie: its blocks, and snapshots of the whole and of what is stored."""
    salt, signature = salt_of(fill.key.tenant), fill.key.signature
    cut = spans(fill.tokens, signature=signature, salt=salt, block_tokens=block_tokens)
    lengths = {len(fill.tokens), fill.stored_tokens}
    wholes = {snapshot_key(fill.tokens[:length], signature=signature, salt=salt) for length in lengths}
    return frozenset(span.key for span in cut) | wholes


def unshared(fill: Fill, others: Iterable[Fill], *, block_tokens: int = BLOCK_TOKENS) -> frozenset[BlockKey]:
    """Keys of `fill` that none of `others` has. Only fills of the same tenant and signature can share any."""
    keys = set(keys_of(fill, block_tokens=block_tokens))
    for other in others:
        if other.key != fill.key and (other.key.tenant, other.key.signature) == (fill.key.tenant, fill.key.signature):
            keys -= keys_of(other, block_tokens=block_tokens)
    return frozenset(keys)


def values_of(worth: Iterable[tuple[Fill, float]], *, block_tokens: int = BLOCK_TOKENS) -> dict[BlockKey, float]:
    """What each block is worth, for `Store.retain`: as much as the dearest of the fills that share it.

    Name the fills that are under way too: their blocks may then take the place of cheaper ones.
    """
    values: dict[BlockKey, float] = {}
    for fill, value in worth:
        for key in keys_of(fill, block_tokens=block_tokens):
            values[key] = max(value, values.get(key, 0.0))
    return values
