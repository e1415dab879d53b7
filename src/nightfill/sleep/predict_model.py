"""Questions foreseen by a model: what it is asked, and what is taken from its reply. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from nightfill.sleep.predict import Candidate, normal, sensible
from nightfill.state.answers import Origin

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPECTED: Final = 0.1
"""Uses of the first question that a model writes; later ones are expected a little less."""
_LATER: Final = 0.99
_FENCE: Final = re.compile(r"^\s*(?:```|~~~)\w*\s*$", re.MULTILINE)
_MARK: Final = re.compile(
    r"^\s*(?:[-*+•–>#]+\s+|\(?\d{1,3}[.):]\s*|\(?[a-zA-Z][.)]\s+|Q(?:uestion)?\s*\d*\s*[.:)]\s*)+"
)
_EDGES: Final = " \t\"'`*_“”‘’«»,[]{}"
_ASKS: Final = re.compile(
    r"^(?:what|who|whom|whose|when|where|which|why|how|is|are|was|were|do|does|did|can|could|should|would|will|has|have|"
    r"had|may|might|must|summari[sz]e|describe|explain|list|name|compare|give|show|tell)\b",
    re.IGNORECASE,
)
_COMMON_WORD: Final = 4
"""Words of so many letters and more tell what a question is about."""


def prompt(count: int) -> str:
    """The user message that asks a model for `count` questions about the context in front of it."""
    return (
        f"Write the {count} questions that readers of the text above are most likely to ask about it. "
        "Each must be answerable from the text alone, and clear to somebody who has not seen the other questions. "
        "Write one question per line and nothing else."
    )


def from_model(reply: str, text: str) -> list[Candidate]:
    """The questions in a model's reply, in its order: numbered or not, quoted, as JSON, with chatter around them.

    What shares no longer word with the context's `text` is not about it, and is dropped like babble and repetitions.
    """
    about = {word for word in normal(text).split() if len(word) >= _COMMON_WORD}
    found: dict[str, str] = {}
    for line in _lines(reply):
        question = _MARK.sub("", line.strip(_EDGES)).strip(_EDGES)
        asks = question.endswith("?") or (_ASKS.match(question) and not question.endswith(":"))
        words = normal(question)
        if asks and sensible(question) and about.intersection(words.split()):
            found.setdefault(words, question)
    return [
        Candidate(text=question, origin=Origin.MODEL, expected=EXPECTED * _LATER**place)
        for place, question in enumerate(found.values())
    ]


def _lines(reply: str) -> Iterator[str]:
    reply = _FENCE.sub("", reply)
    start, stop = min((at for at in (reply.find("["), reply.find("{")) if at >= 0), default=-1), len(reply)
    if start >= 0:
        stop = max(reply.rfind("]"), reply.rfind("}")) + 1
        try:
            yield from _strings(json.loads(reply[start:stop]))
        except (ValueError, RecursionError):
            pass  # no JSON, or half of it: its lines are read as lines
        else:
            return
    for line in reply.splitlines():
        # Several on one line: each ends with its mark.
        yield from re.findall(r"[^?]+\?[\"'”’»*]*|[^?]+$", line)


def _strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for one in value:
                yield from _strings(one)
        case dict():
            for one in value.values():
                yield from _strings(one)
