"""Texts with questions whose answers' places are known: JSONL as COVID-QA and QMSum have it."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from nightfill.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

    Span = tuple[int, int]

Format = Literal["answers", "evidence"]


class Question(msgspec.Struct, frozen=True):
    """Of either format; what it lacks is None."""

    q: str
    a: str | list[str] = ""
    answer_start: list[int] | None = None
    """COVID-QA: where each of the answers `a` begins, in characters."""
    kind: str = ""
    turns: list[tuple[str | int, str | int]] | None = None
    """QMSum: first and last line of each stretch of evidence, from 0."""


class Row(msgspec.Struct, frozen=True):
    """One line of a QA file."""

    document: str
    questions: list[Question]


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and for each question the spans (characters) of which it matters how many are kept."""

    text: str
    needed: tuple[tuple[Span, ...], ...]
    answers: tuple[str, ...] = ()
    """What people answered in words of their own, where the file has that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QaFile:
    """What a file holds."""

    format: Format
    """`answers`: a question is answered from one span (COVID-QA). `evidence`: from a number of turns (QMSum)."""
    documents: tuple[Document, ...]

    @property
    def questions(self) -> int:
        """How many there are."""
        return sum(len(one.needed) for one in self.documents)


def read_qa(path: Path, *, limit: int | None = None) -> QaFile:
    """A JSONL file, gzipped or plain, its format known by its members; at most `limit` documents. Raises BadInput."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as exc:
        raise BadInput(f"cannot read {path}: {exc}") from exc
    documents: list[Document] = []
    formats: set[Format] = set()
    for number, line in enumerate(data.splitlines(), 1):
        if limit is not None and len(documents) >= limit:
            break
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=Row)
            answered, evident = _answered(row), _evident(row)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, IndexError) as exc:
            raise BadInput(f"{path}, line {number}: {exc}") from exc
        if answered:
            formats.add("answers")
            documents.append(Document(row.document, answered))
        if evident:
            formats.add("evidence")
            documents.append(Document(row.document, evident, _own_words(row)))
    if len(formats) != 1:
        found = "both" if formats else "neither"
        raise BadInput(
            f"{path}: questions must have `answer_start` (as in COVID-QA) or `turns` (as in QMSum); {found} found"
        )
    return QaFile(format=formats.pop(), documents=tuple(documents))


def _answered(row: Row) -> tuple[tuple[Span, ...], ...]:
    """The first answer's place of each question."""
    found = []
    for question in row.questions:
        if question.answer_start:
            answer = question.a if isinstance(question.a, str) else question.a[0]
            # Places are those of answers without the blanks around them.
            start, length = question.answer_start[0], len(answer.strip())
            if not 0 <= start < start + length <= len(row.document):
                raise ValueError(f"`answer_start` {start} lies outside of the document")
            found.append(((start, start + length),))
    return tuple(found)


def _evident(row: Row) -> tuple[tuple[Span, ...], ...]:
    """The turns of evidence of each question, empty ones left out."""
    starts = [0]
    for line in row.document.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    found = []
    for question in row.questions:
        lines = {
            line
            for first, last in question.turns or ()
            for line in range(max(0, int(first)), min(int(last) + 1, len(starts) - 1))
        }
        spans = tuple((starts[line], starts[line + 1] - 1) for line in sorted(lines))
        spans = tuple((low, high) for low, high in spans if row.document[low:high].strip())
        if spans:
            found.append(spans)
    return tuple(found)


def _own_words(row: Row) -> tuple[str, ...]:
    return tuple(question.a for question in row.questions if isinstance(question.a, str) and question.a)
