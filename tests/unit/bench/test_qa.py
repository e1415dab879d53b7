from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from nightfill.bench.qa import read_qa
from nightfill.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

ARTICLE = {
    "id": "1",
    "document": "Cats sleep. Dogs bark at night.",
    "questions": [
        {"q": "When?", "a": [" at night "], "answer_start": [22]},
        {"q": "Who?", "a": "Cats", "answer_start": [0]},
    ],
}
MEETING = {
    "id": "m",
    "document": "A: Yes .\nB: No .\n\nA: Maybe .",
    "questions": [
        {"q": "All?", "a": "They disagree.", "kind": "general"},
        {"q": "B?", "a": "B says no.", "kind": "specific", "turns": [["1", "2"], [3, 99]]},
    ],
}


def written(path: Path, *rows: Any, packed: bool = False) -> Path:
    data = "\n".join(json.dumps(row) for row in rows).encode() + b"\n\n"
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_articles_have_one_span_to_each_question(tmp_path: Path, packed: bool) -> None:
    file = read_qa(written(tmp_path / "qa", ARTICLE, ARTICLE, packed=packed))
    assert (file.format, len(file.documents), file.questions) == ("answers", 2, 4)
    document = file.documents[0]
    assert [document.text[low:high] for ((low, high),) in document.needed] == ["at night", "Cats"]


def test_meetings_have_the_turns_of_specific_questions_and_peoples_answers(tmp_path: Path) -> None:
    file = read_qa(written(tmp_path / "qa", MEETING))
    assert (file.format, file.questions) == ("evidence", 1)
    (document,) = file.documents
    assert [document.text[low:high] for low, high in document.needed[0]] == ["B: No .", "A: Maybe ."]
    assert document.answers == ("They disagree.", "B says no.")


def test_no_more_documents_are_read_than_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "qa", ARTICLE, "nonsense")
    assert len(read_qa(path, limit=1).documents) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "neither found"),
        (b'{"document": "x", "questions": []}', "neither found"),
        (b"nonsense", "line 1"),
        (b'{"document": "x"}', "questions"),
        (b'{"document": "x", "questions": [{"q": "y", "a": "long", "answer_start": [0]}]}', "outside of the document"),
        (b'{"document": "x", "questions": [{"q": "y", "turns": [["a", "b"]]}]}', "line 1"),
        (b"\x1f\x8bnot gzip", "cannot read"),
        (json.dumps(ARTICLE).encode() + b"\n" + json.dumps(MEETING).encode(), "both found"),
    ],
)
def test_what_is_no_qa_file_is_refused_by_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "qa"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=says):
        read_qa(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read"):
        read_qa(tmp_path / "none")
