from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from nightfill.contexts.context import Fill, FillKey, FillState, Fingerprint, Form, Outline, Signature, Tenant
from nightfill.kv.key import BlockKey, salt_of, snapshot_key, spans
from nightfill.kv.rotation import Resealed
from nightfill.sleep.upkeep import LEFT_AGAIN_S, RENEWED_AGAIN_S, StoreUpkeep

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    import pytest

T, SIGNATURE = Tenant("default"), Signature("5" * 64)


class FakeStore:
    def __init__(self, keys: Iterable[BlockKey]) -> None:
        self.keys = set(keys)
        self.pinned: set[BlockKey] = set()
        self.values: dict[BlockKey, float] = {}
        self.held: list[tuple[set[BlockKey], float]] = []
        self.published: list[tuple[dict[BlockKey, float], set[BlockKey]]] = []
        self.counts = 0
        self.steps: list[Resealed] = []
        self.salts: list[set[bytes]] = []

    def retain(self, values: Mapping[BlockKey, float]) -> None:
        self.values = dict(values)

    @contextlib.contextmanager
    def hold(self, keys: Iterable[BlockKey], *, value: float = 0.0) -> Iterator[None]:
        self.held.append((set(keys), value))
        yield
        self.held.pop()

    def reseal(self, salts: Iterable[bytes], *, limit: int = 64) -> Resealed:
        assert limit <= 64
        self.salts.append(set(salts))
        return self.steps.pop(0)

    def pin(self, keys: Iterable[BlockKey]) -> None:
        self.pinned = set(keys)

    def publish(self) -> None:
        self.published.append((self.values, self.pinned))

    def sweep(self, keep: Collection[BlockKey] | None = None) -> int:
        assert keep is not None
        self.keys &= set(keep)
        return 0

    def has_many(self, keys: Sequence[BlockKey]) -> list[bool]:
        self.counts += 1
        return [key in self.keys for key in keys]


def fill(first: int, tokens: int = 600) -> Fill:
    return Fill(
        key=FillKey(tenant=T, fingerprint=Fingerprint(f"{first:064x}"), form=Form.CHAT, signature=SIGNATURE),
        state=FillState.READY,
        tokens=tuple(range(first, first + tokens)),
        stored_tokens=tokens,
        filled_at_s=0.0,
        fill_seconds=0.0,
    )


def outline(one: Fill) -> Outline:
    return Outline(
        key=one.key,
        state=one.state,
        total_tokens=one.total_tokens,
        stored_tokens=one.stored_tokens,
        filled_at_s=one.filled_at_s,
        fill_seconds=one.fill_seconds,
    )


def learnt(upkeep: StoreUpkeep, fills: Sequence[Fill]) -> None:
    of = {one.key: one for one in fills}
    for key in upkeep.unknown(map(outline, fills)):
        upkeep.learn(of[key])
    assert upkeep.unknown(map(outline, fills)) == []


def retained(upkeep: StoreUpkeep, *worth: tuple[Fill, float]) -> None:
    learnt(upkeep, [one for one, _ in worth])
    upkeep.retain({one.key: value for one, value in worth})


def tended(upkeep: StoreUpkeep, fills: Sequence[Fill], pinned: Collection[FillKey] = ()) -> Mapping[FillKey, int]:
    learnt(upkeep, fills)
    return upkeep.tend({one.key for one in fills}, pinned)


def keys_of(one: Fill) -> list[BlockKey]:
    return [span.key for span in spans(one.tokens, signature=SIGNATURE, salt=salt_of(T))]


def test_what_no_fill_names_goes_and_what_is_pinned_stays() -> None:
    kept, pinned, gone = fill(1), fill(2), fill(3)
    store = FakeStore(keys_of(kept) + keys_of(pinned) + keys_of(gone))
    left = tended(StoreUpkeep(store), [kept, pinned], {pinned.key})
    assert store.keys == {*keys_of(kept), *keys_of(pinned)}
    assert store.pinned >= set(keys_of(pinned))
    assert store.pinned.isdisjoint(keys_of(kept))
    assert left == {kept.key: 600, pinned.key: 600}


def test_a_gap_ends_what_counts() -> None:
    whole, holed, empty = fill(1), fill(2), fill(3)
    store = FakeStore([*keys_of(whole), keys_of(holed)[0], keys_of(holed)[2]])
    assert tended(StoreUpkeep(store), [whole, holed, empty]) == {whole.key: 600, holed.key: 256, empty.key: 0}


def test_a_model_that_is_stored_whole_counts_whole() -> None:
    one = fill(1)
    store = FakeStore([snapshot_key(one.tokens, signature=SIGNATURE, salt=salt_of(T))])
    assert tended(StoreUpkeep(store), [one]) == {one.key: 600}
    assert len(store.keys) == 1


def test_blocks_are_worth_as_much_as_the_dearest_fill_that_shares_them() -> None:
    one = fill(1)
    longer = fill(1, tokens=900)
    longer = replace(longer, key=replace(longer.key, fingerprint=Fingerprint("f" * 64)))
    store = FakeStore([])
    upkeep = StoreUpkeep(store)
    retained(upkeep, (one, 0.5), (longer, 0.2))
    assert [store.values[key] for key in keys_of(one)] == [0.5, 0.5, 0.5]
    assert store.values[keys_of(longer)[2]] == 0.2
    retained(upkeep, (longer, 0.2))
    assert store.values[keys_of(one)[0]] == 0.2


def test_other_processes_are_told_each_time_what_is_pinned_and_what_all_is_worth() -> None:
    one, pinned = fill(1), fill(2)
    store = FakeStore([])
    upkeep = StoreUpkeep(store)
    retained(upkeep, (one, 0.5))
    assert store.published == []
    tended(upkeep, [one, pinned], {pinned.key})
    ((values, pins),) = store.published
    assert (values.keys() >= set(keys_of(one)), pins >= set(keys_of(pinned))) == (True, True)
    upkeep.publish()
    assert len(store.published) == 2


def test_what_is_under_way_is_held_at_its_value() -> None:
    store = FakeStore([])
    with StoreUpkeep(store).hold(fill(1), value=0.7):
        ((keys, value),) = store.held
    assert (keys >= set(keys_of(fill(1))), value, store.held) == (True, 0.7, [])


def test_a_fill_whose_tokens_changed_is_cut_anew() -> None:
    store = FakeStore([])
    upkeep = StoreUpkeep(store)
    before, after = fill(1), replace(fill(2), key=fill(1).key, filled_at_s=1.0)
    retained(upkeep, (before, 1.0))
    retained(upkeep, (after, 1.0))
    assert set(keys_of(after)) <= store.values.keys()
    assert set(keys_of(before)).isdisjoint(store.values)


def test_blocks_are_counted_by_one_question_and_no_more_often_than_told() -> None:
    now_s = 0.0
    fills = [fill(n) for n in range(1, 2001, 100)]
    store = FakeStore([key for one in fills for key in keys_of(one)])
    upkeep = StoreUpkeep(store, count_every_s=600.0, clock=lambda: now_s)
    assert len(tended(upkeep, fills)) == len(fills)
    now_s = 599.0
    assert (tended(upkeep, fills), store.counts) == ({}, 1)
    now_s = 600.0
    assert (len(tended(upkeep, fills)), store.counts) == (len(fills), 2)


def test_a_change_of_keys_is_said_to_be_over_once(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    store = FakeStore([])
    upkeep = StoreUpkeep(store, rotating=True, salts=[b"a"], clock=lambda: now_s)
    store.steps = [step(finished=False), step(left=3), step(), step()]
    with caplog.at_level(logging.INFO):
        upkeep.renew([b"b"])
        assert (store.salts, caplog.messages, upkeep.renew_due()) == ([{b"a", b"b"}], [], True)
        upkeep.renew([])
        assert "3 blocks stay under an old key" in caplog.messages[-1]
        assert not upkeep.renew_due()
        now_s += LEFT_AGAIN_S
        assert upkeep.renew_due()
        upkeep.renew([])
        assert "kv.old_key_files can go" in caplog.messages[-1]
        now_s += RENEWED_AGAIN_S
        assert upkeep.renew_due()
        upkeep.renew([])
    assert len(caplog.messages) == 2


def test_where_no_key_is_changed_nothing_is_looked_at() -> None:
    assert not StoreUpkeep(FakeStore([])).renew_due()


def step(*, left: int = 0, finished: bool = True) -> Resealed:
    return Resealed(blocks=1, left=left, unknown=0, finished=finished)
