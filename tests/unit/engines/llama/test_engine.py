from __future__ import annotations

import msgspec
import pytest

from nightfill.engines.engine import Call
from nightfill.engines.llama.engine import _copies


@pytest.mark.parametrize(
    ("body", "copies"),
    [({}, 1), ({"n": b"3"}, 3), ({"n": b"null"}, 1), ({"n_cmpl": b"2"}, 2), ({"n": b"1", "n_cmpl": b"4"}, 4)],
)
def test_answers_that_are_wanted_are_counted(body: dict[str, bytes], copies: int) -> None:
    members = {name: msgspec.Raw(value) for name, value in body.items()}
    assert _copies(Call(path="/v1/chat/completions", body=members, stream=False)) == copies
