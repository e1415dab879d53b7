from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.kv.eviction import Record, Retention, expired, room_for, shortfall, unwanted, victims
from nightfill.kv.key import BlockKey

OURS, THEIRS = b"ours----", b"theirs--"


def record(number: int, *, size: int = 10, used_s: float = 0.0, owner: bytes = OURS) -> Record:
    return Record(BlockKey(bytes([number]) * 32), size, used_s, owner)


A, B, C = record(1, used_s=100), record(2, used_s=200), record(3, used_s=300)


@pytest.mark.parametrize(
    ("incoming", "used", "cap", "free", "floor", "short"),
    [
        (10, 80, 100, None, 0, -10),
        (10, 90, 100, None, 0, 0),
        (10, 95, 100, None, 0, 5),
        (10, 0, 100, 50, 20, -20),
        (10, 0, 100, 25, 20, 5),
        (10, 95, 100, 25, 20, 5),
        (10, 98, 100, 25, 20, 8),
        (10, 0, 100, 0, 0, 10),
    ],
)
def test_shortfall_heeds_cap_and_floor_whichever_is_worse(
    incoming: int, used: int, cap: int, free: int | None, floor: int, short: int
) -> None:
    found = shortfall(incoming_bytes=incoming, used_bytes=used, max_bytes=cap, free_bytes=free, min_free_bytes=floor)
    assert found == short


@pytest.mark.parametrize(
    ("need", "pinned", "chosen"),
    [
        (0, (), ()),
        (-5, (), ()),
        (1, (), (A,)),
        (10, (), (A,)),
        (11, (), (A, B)),
        (1, (A,), (B,)),
        (20, (A,), (B, C)),
        (30, (A,), None),
        (31, (), None),
        (1, (A, B, C), None),
        (0, (A, B, C), ()),
    ],
)
def test_the_oldest_go_first_and_nothing_goes_in_vain(
    need: int, pinned: tuple[Record, ...], chosen: tuple[Record, ...] | None
) -> None:
    assert victims([A, B, C], need_bytes=need, pinned={record.key for record in pinned}) == chosen


def test_blocks_expire_after_their_last_use_unless_pinned() -> None:
    assert expired([A, B, C], now_s=300, ttl_s=100, pinned=frozenset()) == (A,)
    assert expired([A, B, C], now_s=301, ttl_s=100, pinned={A.key}) == (B,)
    assert expired([A, B, C], now_s=1e9, ttl_s=100, pinned={A.key, B.key, C.key}) == ()


def test_unwanted_is_what_nobody_keeps_after_the_grace() -> None:
    assert unwanted([A, B, C], keep={B.key}, now_s=900, grace_s=600) == (A,)
    assert unwanted([A, B, C], keep={B.key}, now_s=901, grace_s=600) == (A, C)
    assert unwanted([A, B, C], keep=frozenset(), now_s=100, grace_s=0) == ()


@pytest.mark.parametrize(
    ("worth", "need", "below", "chosen"),
    [
        ({A: 2.0, B: 1.0}, 1, None, (C,)),
        ({A: 2.0, B: 1.0}, 20, None, (C, B)),
        ({A: 2.0, B: 1.0}, 30, None, (C, B, A)),
        ({A: 1.0, B: 1.0, C: 0.5}, 20, None, (C, A)),
        ({A: 1.0, C: 0.0}, 20, None, (B, C)),
        ({A: 2.0, B: 1.0}, 20, 1.0, None),
        ({A: 2.0, B: 1.0}, 20, 1.5, (C, B)),
        ({A: 2.0, B: 1.0}, 10, 0.0, (C,)),
        ({A: 2.0, B: 2.0, C: 2.0}, 1, 2.0, None),
        ({A: 2.0, B: 2.0, C: 2.0}, 1, 2.1, (A,)),
    ],
)
def test_what_is_worth_least_goes_first_then_what_is_oldest(
    worth: dict[Record, float], need: int, below: float | None, chosen: tuple[Record, ...] | None
) -> None:
    values = {one.key: value for one, value in worth.items()}
    assert victims([A, B, C], need_bytes=need, pinned=frozenset(), values=values, below=below) == chosen


def test_the_pinned_stay_whatever_they_are_worth() -> None:
    assert victims([A, B], need_bytes=1, pinned={A.key}, values={B.key: 9.0}) == (B,)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3), st.booleans()), max_size=12),
    st.integers(-5, 400),
    st.one_of(st.none(), st.floats(0, 4)),
)
def test_enough_goes_none_of_it_in_vain_and_never_the_dearer_before_the_cheaper(
    blocks: list[tuple[int, int, bool]], need: int, below: float | None
) -> None:
    records = [record(number, size=size) for number, (size, _, _) in enumerate(blocks)]
    values = {one.key: float(value) for one, (_, value, _) in zip(records, blocks, strict=True)}
    pinned = {one.key for one, (_, _, pin) in zip(records, blocks, strict=True) if pin}
    free = [
        one
        for one in records
        if one.key not in pinned and (not values[one.key] or below is None or values[one.key] < below)
    ]
    chosen = victims(records, need_bytes=need, pinned=pinned, values=values, below=below)
    if chosen is None:
        assert sum(one.size_bytes for one in free) < need
        return
    assert set(chosen) <= set(free)
    assert list(chosen) == sorted(free, key=lambda one: values[one.key])[: len(chosen)]
    assert sum(one.size_bytes for one in chosen) >= need
    assert not chosen or sum(one.size_bytes for one in chosen[:-1]) < need


def test_a_tenant_over_its_cap_makes_room_among_its_own() -> None:
    theirs, ours = record(1, owner=THEIRS), record(2)
    incoming = record(3)
    held = [theirs, ours]
    assert room_for(incoming, held, short_bytes=5, retention=Retention()) == (theirs,)
    assert room_for(incoming, held, short_bytes=0, owner_short_bytes=5, retention=Retention()) == (ours,)
    assert room_for(incoming, held, short_bytes=20, owner_short_bytes=5, retention=Retention()) is None
    pinned = Retention(pinned=frozenset({ours.key}))
    assert room_for(incoming, held, short_bytes=0, owner_short_bytes=5, retention=pinned) is None


def test_what_is_replaced_is_no_victim() -> None:
    assert room_for(record(1, size=30), [A, B, C], short_bytes=5, retention=Retention()) == (B,)


def test_where_blocks_have_their_home_they_give_way_only_to_what_is_worth_more() -> None:
    values = {A.key: 2.0, B.key: 1.0}
    for value, guarded, chosen in [
        (0.0, True, None),
        (1.0, True, None),
        (1.5, True, (B,)),
        (2.5, True, (B,)),
        (0.0, False, (B,)),
    ]:
        retention = Retention(values=values | {C.key: value}, guarded=guarded)
        assert room_for(C, [A, B], short_bytes=5, retention=retention) == chosen
