from __future__ import annotations

from nightfill.cli.upkeep import _left_over, _named
from nightfill.contexts import DEFAULT_TENANT, Fill, FillKey, FillState, Fingerprint, Form, Signature

BLOCK = 256


def fill(version: str, tokens: int) -> Fill:
    key = FillKey(
        tenant=DEFAULT_TENANT, fingerprint=Fingerprint(version * 64), form=Form.CHAT, signature=Signature("5" * 64)
    )
    return Fill(
        key=key,
        state=FillState.READY,
        tokens=tuple(range(tokens)),
        stored_tokens=tokens,
        filled_at_s=0,
        fill_seconds=1,
    )


def test_a_turn_that_was_replaced_leaves_only_the_blocks_behind_that_no_other_fill_has() -> None:
    """A chat's turns share their blocks, and all chats those of their context: each would lose its slot with them."""
    before, after = fill("a", 2 * BLOCK + 9), fill("b", 3 * BLOCK)
    left = _left_over([before], [], [after], BLOCK)
    assert left == _named([before], BLOCK) - _named([after], BLOCK)
    assert 0 < len(left) < len(_named([before], BLOCK))


def test_of_a_fill_that_changed_all_blocks_are_read_again() -> None:
    changed = fill("a", 2 * BLOCK)
    assert _left_over([], [changed], [changed], BLOCK) == _named([changed], BLOCK)
