"""What the store holds, compared with what the book says: pins, sweeps, and fills whose bytes are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

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
        pieces = {fill.key: _pieces(fill, block_tokens) for fill in fills}
        wholes = {
            fill.key: snapshot_key(fill.tokens, signature=fill.key.signature, salt=salt_of(fill.key.tenant))
            for fill in fills
        }
        store.pin({key for name in pieces if name in pinned for key in _keys(pieces[name], wholes[name])})
        store.sweep({key for name in pieces for key in _keys(pieces[name], wholes[name])})
        left = {}
        for fill in fills:
            cut = pieces[fill.key]
            there = store.leading(cut)
            tokens = cut[there - 1].stop if there else 0
            # A model whose cache cannot be cut is stored whole.
            left[fill.key] = len(fill.tokens) if store.has(wholes[fill.key]) else tokens
        return left

    return tend


def _pieces(fill: Fill, block_tokens: int) -> tuple[Span, ...]:
    return spans(fill.tokens, signature=fill.key.signature, salt=salt_of(fill.key.tenant), block_tokens=block_tokens)


def _keys(pieces: Sequence[Span], whole: BlockKey) -> Iterable[BlockKey]:
    yield from (piece.key for piece in pieces)
    yield whole
