from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.contexts.context import Fill, FillKey, FillState, Fingerprint, Form, Signature, Tenant
from nightfill.kv.key import BlockKey, Span, salt_of, snapshot_key, spans
from nightfill.sleep.upkeep import upkeep_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

T, SIGNATURE = Tenant("default"), Signature("5" * 64)


class FakeStore:
    def __init__(self, keys: Iterable[BlockKey]) -> None:
        self.keys = set(keys)
        self.pinned: set[BlockKey] = set()

    def pin(self, keys: Iterable[BlockKey]) -> None:
        self.pinned = set(keys)

    def sweep(self, keep: Collection[BlockKey] | None = None) -> int:
        assert keep is not None
        self.keys &= set(keep)
        return 0

    def leading(self, spans: Sequence[Span]) -> int:
        return next((n for n, span in enumerate(spans) if span.key not in self.keys), len(spans))

    def has(self, key: BlockKey) -> bool:
        return key in self.keys


def fill(first: int, tokens: int = 600) -> Fill:
    return Fill(
        key=FillKey(tenant=T, fingerprint=Fingerprint(f"{first:064x}"), form=Form.CHAT, signature=SIGNATURE),
        state=FillState.READY,
        tokens=tuple(range(first, first + tokens)),
        stored_tokens=tokens,
        filled_at_s=0.0,
        fill_seconds=0.0,
    )


def keys_of(one: Fill) -> list[BlockKey]:
    return [span.key for span in spans(one.tokens, signature=SIGNATURE, salt=salt_of(T))]


def test_what_no_fill_names_goes_and_what_is_pinned_stays() -> None:
    kept, pinned, gone = fill(1), fill(2), fill(3)
    store = FakeStore(keys_of(kept) + keys_of(pinned) + keys_of(gone))
    left = upkeep_of(store)([kept, pinned], {pinned.key})
    assert store.keys == {*keys_of(kept), *keys_of(pinned)}
    assert store.pinned >= set(keys_of(pinned))
    assert store.pinned.isdisjoint(keys_of(kept))
    assert left == {kept.key: 600, pinned.key: 600}


def test_a_gap_ends_what_counts() -> None:
    whole, holed, empty = fill(1), fill(2), fill(3)
    store = FakeStore([*keys_of(whole), keys_of(holed)[0], keys_of(holed)[2]])
    assert upkeep_of(store)([whole, holed, empty], set()) == {whole.key: 600, holed.key: 256, empty.key: 0}


def test_a_model_that_is_stored_whole_counts_whole() -> None:
    one = fill(1)
    store = FakeStore([snapshot_key(one.tokens, signature=SIGNATURE, salt=salt_of(T))])
    assert upkeep_of(store)([one], set()) == {one.key: 600}
    assert len(store.keys) == 1
