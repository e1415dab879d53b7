from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.contexts.context import Signature, Tenant
from nightfill.kv.key import BLOCK_TOKENS, Span, salt_of, snapshot_key, snapshot_keys, spans

SIGNATURE = Signature("5a" * 32)
OTHER = Signature("5b" * 32)
SALT = salt_of(Tenant("a"))
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def cut(tokens: list[int], block_tokens: int = 4) -> tuple[Span, ...]:
    return spans(tokens, signature=SIGNATURE, salt=SALT, block_tokens=block_tokens)


@given(TOKENS, st.integers(1, 9))
def test_spans_cover_all_tokens_without_gap_or_overlap(tokens: list[int], block_tokens: int) -> None:
    found = cut(tokens, block_tokens)
    assert [token for span in found for token in tokens[span.start : span.stop]] == tokens
    assert all(span.stop - span.start == block_tokens for span in found[:-1])
    assert all(0 < span.stop - span.start <= block_tokens for span in found)


@given(TOKENS, TOKENS, TOKENS)
def test_two_prefixes_share_the_blocks_that_lie_wholly_in_what_they_share(
    shared: list[int], one: list[int], two: list[int]
) -> None:
    a, b = cut(shared + one), cut(shared + two)
    whole = sum(x == y for x, y in zip(a, b, strict=False))
    same = 0
    for x, y in zip(shared + one, shared + two, strict=False):
        if x != y:
            break
        same += 1
    assert whole >= same // 4
    assert a[:whole] == b[:whole]
    for mine, yours in zip(a[whole:], b[whole:], strict=False):
        assert mine.key != yours.key, "a block after the first difference must differ, whatever it holds"


def test_a_short_last_block_is_not_taken_for_the_full_one() -> None:
    assert cut([1, 2, 3])[0].key != cut([1, 2, 3, 0])[0].key


def test_the_key_is_a_chained_hash_of_little_endian_tokens() -> None:
    seed = hashlib.sha256(b"nightfill.kv.1\0block\0" + bytes.fromhex(SIGNATURE) + SALT).digest()
    first = hashlib.sha256(seed + struct.pack("<4I", 1, 2, 3, 4)).digest()
    second = hashlib.sha256(first + struct.pack("<I", 5)).digest()
    assert [span.key for span in cut([1, 2, 3, 4, 5])] == [first, second]


def test_signature_salt_and_kind_each_make_another_key() -> None:
    tokens = list(range(BLOCK_TOKENS))
    keys = {
        spans(tokens, signature=SIGNATURE, salt=SALT)[0].key,
        spans(tokens, signature=OTHER, salt=SALT)[0].key,
        spans(tokens, signature=SIGNATURE, salt=salt_of(Tenant("b")))[0].key,
        snapshot_key(tokens, signature=SIGNATURE, salt=SALT),
        snapshot_key(tokens, signature=OTHER, salt=SALT),
    }
    assert len(keys) == 5
    assert {len(key) for key in keys} == {32}


def test_a_snapshot_is_of_exactly_its_tokens() -> None:
    assert snapshot_key([1, 2], signature=SIGNATURE, salt=SALT) != snapshot_key([1], signature=SIGNATURE, salt=SALT)


def test_no_tokens_have_no_spans() -> None:
    assert cut([]) == ()


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_out_of_range_is_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        cut([token])


@given(TOKENS, st.integers(1, 9))
def test_keys_of_unfinished_snapshots_are_those_of_their_tokens(tokens: list[int], every: int) -> None:
    found = snapshot_keys(tokens, signature=SIGNATURE, salt=SALT, every=every)
    assert [length for length, _ in found] == list(range(every, len(tokens), every))
    for length, key in found:
        assert key == snapshot_key(tokens[:length], signature=SIGNATURE, salt=SALT)
