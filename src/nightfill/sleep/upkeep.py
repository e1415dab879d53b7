"""What the store holds, compared with what the book says: pins, sweeps, and fills whose bytes are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nightfill.kv.holdings import keys_of
from nightfill.kv.key import BLOCK_TOKENS, salt_of, snapshot_key, spans

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from nightfill.contexts.context import Fill, FillKey
    from nightfill.kv.key import BlockKey, Span

    Upkeep = Callable[[Sequence[Fill], Collection[FillKey]], Mapping[FillKey, int]]
    """Fills and the pinned ones among them -> how many tokens the store has of each, from the front.

    Runs in a thread. May raise KvError.
    """


class SweptStore(Protocol):
    """The part of `kv.Store` that upkeep needs."""

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Replace the set of keys that neither eviction nor expiry takes."""

    def sweep(self, keep: Collection[BlockKey] | None = None) -> int:
        """Delete what is expired or not in `keep`; how many."""

    def leading(self, spans: Sequence[Span]) -> int:
        """How many of `spans`, from the first on, are there without a gap."""

    def has(self, key: BlockKey) -> bool:
        """Whether some tier seems to have it."""


def upkeep_of(store: SweptStore, *, block_tokens: int = BLOCK_TOKENS) -> Upkeep:
    """Pin what is pinned, sweep what no fill names, and count what is left of each fill."""

    def tend(fills: Sequence[Fill], pinned: Collection[FillKey]) -> Mapping[FillKey, int]:
        keys = {fill.key: keys_of(fill, block_tokens=block_tokens) for fill in fills}
        store.pin({key for name in keys if name in pinned for key in keys[name]})
        store.sweep({key for named in keys.values() for key in named})
        return {fill.key: _left(store, fill, block_tokens) for fill in fills}

    return tend


def _left(store: SweptStore, fill: Fill, block_tokens: int) -> int:
    salt, signature = salt_of(fill.key.tenant), fill.key.signature
    # A model whose cache cannot be cut is stored whole, as far as it is computed.
    for length in sorted({len(fill.tokens), fill.stored_tokens}, reverse=True):
        if length and store.has(snapshot_key(fill.tokens[:length], signature=signature, salt=salt)):
            return length
    pieces = spans(fill.tokens, signature=signature, salt=salt, block_tokens=block_tokens)
    there = store.leading(pieces)
    return pieces[there - 1].stop if there else 0
