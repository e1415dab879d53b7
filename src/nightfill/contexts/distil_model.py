"""Distilling by a model: how a text is cut for it, what it is told, and which of its replies are taken. Pure."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts.distil_segments import Segment

BYTES_PER_TOKEN: Final = 4
SECTION_TOKENS: Final = 1500
"""Of text in one request: a model leaves out less of a short text, and live requests wait for at most so much."""
_TOO_LONG: Final = 1.6
"""Times the bytes that were asked for."""
_TOO_SHORT: Final = 0.1
_RUN: Final = 4
"""So many words in a row are compared to see whether a reply repeats itself."""
_NEW_RUNS: Final = 0.7
_OWN_WORDS: Final = 0.5
"""Of the longer words of a reply must be in the section: the rest would not be about it."""
_WORD: Final = re.compile(r"\w+")
_FENCE: Final = re.compile(r"^\s*```\w*\n(?P<inside>.*)\n```\s*$", re.DOTALL)
_DASHES: Final = re.compile(r"\A-{3,}\s*\n|\n-{3,}\s*\Z")
_THOUGHT: Final = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_OPENING: Final = re.compile(
    r"^\s*(?:sure|certainly|of course|okay|ok|here(?: is|'s| are))\b[^\n]{0,120}(?::|\.|!)\s*\n+", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A stretch of the text, written anew in one request."""

    start: int
    end: int
    """In characters."""
    target_bytes: int
    """What it is to become."""


def sections_of(text: str, segments: Sequence[Segment], *, ratio: float, most_tokens: int) -> list[Section]:
    """The whole text in stretches of at most `most_tokens`, cut between segments, before headings where that fits."""
    most = most_tokens * BYTES_PER_TOKEN
    # Of about equal length, or a few words would be left for the last one.
    total = len(text.encode())
    most = min(most, int(1.1 * total / max(1, -(-total // most))))
    cuts, size, previous = [0], 0, 0
    for place, one in enumerate(segments):
        length = len(text[previous : one.end].encode())
        begins = place > 0 and one.section != segments[place - 1].section
        if size and (size + length > most or (begins and size > most // 2)):
            cuts.append(one.start)
            size = 0
        size += length
        previous = one.end
    bounds = [*cuts, len(text)]
    return [
        Section(start=low, end=high, target_bytes=max(200, int(len(text[low:high].encode()) / ratio)))
        for low, high in itertools.pairwise(bounds)
        if text[low:high].strip()
    ]


def prompt(piece: str, *, place: int, of: int, words: int) -> str:
    """The user message that asks a model to write a section anew, in about so many words."""
    return (
        f"The text between the two lines of dashes is part {place} of {of} of a longer text.\n-----\n{piece}\n-----\n"
        f"Write this part again in at most {words} words, so that questions about it can still be answered. Keep "
        "names, numbers, dates, definitions, decisions, results and their reasons, and headings, in their order. Leave "
        "out repetitions, small talk and side remarks. Add nothing, and write the shortened text alone."
    )


def taken(reply: str, piece: str, *, target_bytes: int) -> str | None:
    """The shortened text in a model's reply; None when it is empty, too long or much too short, repeats itself, or is
    not about the section.
    """
    text = _THOUGHT.sub("", reply).strip()
    fenced = _FENCE.match(text)
    text = _OPENING.sub("", fenced["inside"] if fenced else text).strip()
    text = _DASHES.sub("", text)
    words = [word.casefold() for word in _WORD.findall(text)]
    size = len(text.encode())
    if len(words) < 3 or not _TOO_SHORT * target_bytes <= size <= min(
        _TOO_LONG * target_bytes, 0.9 * len(piece.encode())
    ):
        return None
    runs = [tuple(words[at : at + _RUN]) for at in range(max(1, len(words) - _RUN + 1))]
    if len(set(runs)) < _NEW_RUNS * len(runs):
        return None
    known = {word.casefold() for word in _WORD.findall(piece)}
    long = [word for word in words if len(word) > 3]
    return text if sum(word in known for word in long) >= _OWN_WORDS * len(long) else None
