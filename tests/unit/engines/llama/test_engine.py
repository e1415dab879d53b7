from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.engines.engine import Call
from nightfill.engines.llama.engine import _copies, common_prefix

ROWS = st.lists(st.lists(st.integers(0, 2), max_size=8).map(tuple), min_size=1, max_size=6)


@given(ROWS)
def test_the_common_prefix_is_common_and_the_longest(rows: list[tuple[int, ...]]) -> None:
    found = common_prefix(rows)
    assert all(row[: len(found)] == found for row in rows)
    longer = {row[: len(found) + 1] for row in rows}
    assert len(longer) > 1 or min(len(row) for row in rows) == len(found)


def test_a_row_that_ends_is_the_prefix_of_a_longer_one() -> None:
    assert common_prefix([(1, 2), (1, 2, 3)]) == (1, 2)


@pytest.mark.parametrize(
    ("body", "copies"),
    [({}, 1), ({"n": b"3"}, 3), ({"n": b"null"}, 1), ({"n_cmpl": b"2"}, 2), ({"n": b"1", "n_cmpl": b"4"}, 4)],
)
def test_answers_that_are_wanted_are_counted(body: dict[str, bytes], copies: int) -> None:
    members = {name: msgspec.Raw(value) for name, value in body.items()}
    assert _copies(Call(path="/v1/chat/completions", body=members, stream=False)) == copies
