from pathlib import Path

import pytest

from nightfill.bench.query import queries, read_questions, salt_line
from nightfill.errors import BadInput


def test_questions_are_asked_in_turn() -> None:
    asked = list(queries(["a", "b"], count=5, cold=True))
    assert [(query.index, query.question, query.cold) for query in asked] == [
        (0, "a", True),
        (1, "b", True),
        (2, "a", True),
        (3, "b", True),
        (4, "a", True),
    ]


def test_no_two_salts_are_alike() -> None:
    assert len({salt_line() for _ in range(100)}) == 100


def test_questions_are_read_a_line_each_without_the_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_text("Why?\n\n  How so? \n", encoding="utf-8")
    assert read_questions(path) == ("Why?", "How so?")


def test_questions_are_read_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "Why?", "id": 1}\n"How\\nso?"\n', encoding="utf-8")
    assert read_questions(path) == ("Why?", "How\nso?")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", b"\n \n", "no question in"),
        ("q.txt", b"\xff\xfe\xfd", "cannot read questions"),
        ("q.jsonl", b'"ok"\n{oops\n', "entry 2 is not JSON"),
        ("q.jsonl", b'{"text": "Why?"}\n', "entry 1 is neither"),
        ("q.jsonl", b'""\n', "entry 1 is neither"),
    ],
)
def test_a_file_without_questions_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        read_questions(path)
    assert name in str(caught.value)


def test_a_missing_file_of_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read questions"):
        read_questions(tmp_path / "none.txt")
