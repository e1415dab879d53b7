"""What is asked of a server while it is measured, and what came of each question."""

from __future__ import annotations

import itertools
import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nightfill.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

QUESTIONS: Final = (
    "What is this about? Answer in one sentence.",
    "Which part of it would you read first, and why?",
    "Name the most important class or section and say what it does.",
    "How are errors reported to the caller?",
    "Where does the work happen that takes most of the time?",
    "Which names are part of the public interface?",
    "What happens when the input is empty?",
    "Which limits or defaults does it set?",
    "How would you test it?",
    "What would break first under heavy load?",
    "Which part looks the most risky to change?",
    "Summarise the last part in two sentences.",
)
"""Asked in turn when no file of questions is given. They fit any text; what is measured is time, not wisdom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question to ask, and how."""

    index: int
    question: str
    cold: bool
    """Ask so that nothing computed before can be reused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one query took. Seconds count from the moment it was due."""

    index: int
    due_s: float
    """When it was to be sent, by the clock that the client was given."""
    ttft_s: float | None
    """Due until the first piece of text. A reply without any text counts its end; None if there was no reply."""
    total_s: float
    """Due until the end of the reply, or until it failed."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    """Prompt tokens that the server says it did not compute: its usage says so, else its header; None: not said."""
    layer: str = ""
    """`x-nightfill-layer`; empty for other servers."""
    status: int = 0
    """HTTP status; 0 if there was none."""
    error: str = ""
    """Why it failed; empty if it did not. Holds no prompt and no answer."""

    @property
    def ok(self) -> bool:
        """Whether the reply came whole."""
        return not self.error


def queries(questions: Sequence[str], *, count: int, cold: bool) -> Iterator[Query]:
    """`count` queries that take the questions in turn."""
    for index, question in enumerate(itertools.islice(itertools.cycle(questions), count)):
        yield Query(index=index, question=question, cold=cold)


def salt_line() -> str:
    """A line that no prompt ever started with: in front of one, it leaves a prefix cache nothing to find."""
    return f"[{uuid.uuid4().hex}]\n"


def read_questions(path: Path) -> tuple[str, ...]:
    """Questions of a file: one a line, or with the suffix `.jsonl` one JSON string or `{"question": ...}` a line.

    Empty lines are left out. Raises BadInput.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"cannot read questions from {path}: {exc}", param="questions") from exc
    lines = [line for line in lines if line]
    if not lines:
        raise BadInput(f"no question in {path}", param="questions")
    if path.suffix != ".jsonl":
        return tuple(lines)
    return tuple(_question(path, number, line) for number, line in enumerate(lines, start=1))


def _question(path: Path, number: int, line: str) -> str:
    try:
        value: Any = json.loads(line)
    except ValueError as exc:
        raise BadInput(f"{path}: entry {number} is not JSON: {exc}", param="questions") from exc
    question = value.get("question") if isinstance(value, dict) else value
    if not isinstance(question, str) or not question:
        raise BadInput(f'{path}: entry {number} is neither a string nor {{"question": "..."}}', param="questions")
    return question
