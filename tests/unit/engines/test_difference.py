from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nightfill.contexts import Front
from nightfill.contexts.context import Text
from nightfill.engines.difference import common_prefix, unlike_chats, unlike_prompts

ROWS = st.lists(st.lists(st.integers(0, 2), max_size=8).map(tuple), min_size=1, max_size=6)


@given(ROWS)
def test_the_common_prefix_is_common_and_the_longest(rows: list[tuple[int, ...]]) -> None:
    found = common_prefix(rows)
    assert all(row[: len(found)] == found for row in rows)
    longer = {row[: len(found) + 1] for row in rows}
    assert len(longer) > 1 or min(len(row) for row in rows) == len(found)


def test_a_row_that_ends_is_the_prefix_of_a_longer_one() -> None:
    assert common_prefix([(1, 2), (1, 2, 3)]) == (1, 2)


def test_what_follows_a_context_differs_from_the_first_character_on() -> None:
    front = Front(Text("Once."))
    prompts = unlike_prompts(front)
    assert all(prompt.startswith("Once.") for prompt in prompts)
    assert len({prompt[5:6] for prompt in prompts}) > 3
    assert all(b"Once." in bytes(chat[0]) for chat in unlike_chats(front))
