from __future__ import annotations

import pytest

from nightfill.contexts.context import Signature, Tenant
from nightfill.engines.vllm.asked import salt_from, whole_spans, wish_of
from nightfill.engines.vllm.wire import Wish
from nightfill.kv.key import salt_of, spans

SIGNATURE = Signature("ab" * 32)


def test_a_salt_of_64_hex_digits_is_taken_as_it_is_so_that_others_can_compute_the_same_keys() -> None:
    salt = salt_of(Tenant("someone"))
    assert salt_from(salt.hex()) == salt


@pytest.mark.parametrize("text", ["x", "zz" * 32, "ab" * 31, "ab" * 33])
def test_any_other_text_makes_a_salt_of_its_own(text: str) -> None:
    salt = salt_from(text)
    assert len(salt) == 32
    assert salt not in {salt_from(None), salt_from(text + "."), text.encode()[:32]}


def test_requests_without_a_salt_share_one_that_no_text_gives() -> None:
    assert salt_from(None) == salt_from("")
    assert salt_from(None) != salt_of(Tenant("default"))


@pytest.mark.parametrize(("length", "blocks"), [(0, 0), (255, 0), (256, 1), (600, 2)])
def test_only_whole_blocks_have_spans_and_they_are_those_of_the_whole_prefix(length: int, blocks: int) -> None:
    tokens = list(range(length))
    found = whole_spans(tokens, signature=SIGNATURE, salt=bytes(32), block_tokens=256)
    assert len(found) == blocks
    assert found == spans(list(range(1000)), signature=SIGNATURE, salt=bytes(32))[:blocks]


def test_a_wish_is_read_from_the_field_for_connectors() -> None:
    assert wish_of({"nightfill": {"fresh": True, "await_tokens": 512}}) == Wish(fresh=True, await_tokens=512)
    assert wish_of({"nightfill": {}}) == Wish()


@pytest.mark.parametrize("params", [None, {}, {"other": 1}, {"nightfill": {"fresh": "yes"}}, {"nightfill": 7}])
def test_no_wish_and_one_that_cannot_be_read_are_none(params: dict[str, object] | None) -> None:
    assert wish_of(params) is None
