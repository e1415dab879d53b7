from __future__ import annotations

import pytest

from nightfill.kv.eviction import Record, expired, shortfall, unwanted, victims
from nightfill.kv.key import BlockKey


def record(number: int, *, size: int = 10, used_s: float = 0.0) -> Record:
    return Record(BlockKey(bytes([number]) * 32), size, used_s)


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
