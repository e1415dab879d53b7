"""Short pieces near the top of prompts that differ from request to request, and so keep all that follows from being
reused: dates, times, ids, counters, names. Pure.

A prompt whose beginning is new is compared with earlier ones that have a sentence in common with it. Where the two are
alike but for a few short pieces, the first of these is what breaks reuse.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from nightfill.contexts.context import Text
from nightfill.contexts.discovery_prompt import common_length

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nightfill.contexts.context import Content
    from nightfill.contexts.discovery import Key
    from nightfill.contexts.discovery_prompt import Prompt

LONGEST: Final = 200
"""Characters of a piece, on either side."""
_MOST_PIECES: Final = 16
_ANCHOR: Final = 32
"""So many characters alike end a piece."""
_COMPARED: Final = 64 << 10
_ANCHORS: Final = 6
_ANCHORED: Final = 16 << 10
_TRIES: Final = 4
_EXAMPLES: Final = 3
_MOST_ROOTS: Final = 512
_BYTES: Final = 4096
"""Of memory, beside the text; and for each root:"""
_ROOT_BYTES: Final = 256
_AROUND: Final = 40
_SENTENCE: Final = re.compile(r"[^\n.!?;]{24,160}")
_MONTH: Final = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_KINDS: Final = re.compile(
    "|".join(
        f"(?P<{kind}>{pattern})"
        for kind, pattern in (
            ("uuid", r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"),
            ("date_and_time", r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"),
            ("address", r"[\w.+-]+@[\w-]+\.[\w.]+|\b\d{1,3}(?:\.\d{1,3}){3}\b"),
            (
                "date",
                (
                    r"\b\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b|\b\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}\b"
                    rf"|\b{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? \d{{4}}\b)?"
                    rf"|\b\d{{1,2}}\.? {_MONTH}\b(?: \d{{4}}\b)?"
                ),
            ),
            ("time", r"\b\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?(?: ?[aApP]\.?[mM]\b)?"),
            ("id", r"\b(?=[A-Za-z_-]*\d)(?=[\d_-]*[A-Za-z])[A-Za-z0-9][\w-]{5,}\b"),
            ("number", r"[-+]?\b\d[\d_,]*(?:\.\d+)?\b"),
        )
    )
)


About = TypeVar("About")


class Difference(NamedTuple):
    """`length` characters at `at` of one text are `other_length` at `other_at` of the other."""

    at: int
    length: int
    other_at: int
    other_length: int


@dataclass(slots=True, kw_only=True)
class Spot:
    """A place whose text differs."""

    message: int
    """Of the request, from 0."""
    offset: int
    """Characters from the start of the message's text, in the earliest request."""
    kind: str
    """What its text looks like: `uuid`, `date`, `number`...; `text` for nothing that is known."""
    shortest: int
    longest: int
    """Characters."""
    examples: list[str] = field(default_factory=list)
    """A few of the texts themselves. Not to be shown unasked."""


@dataclass(slots=True)
class Volatile(Generic[About]):
    """Prompts that are alike but for short pieces."""

    about: About
    text: str
    starts: tuple[int, ...]
    """Where each message's text begins in `text`."""
    roots: set[Key]
    variants: int = 1
    """Prompts with other pieces than all before them."""
    shared: int = 0
    """Characters that these had in common with the first one behind the first such piece."""
    spots: dict[int, Spot] = field(default_factory=dict)


class VolatileSketch(Generic[About]):
    """Finds them, in at most `max_bytes` of texts, those met longest ago forgotten first. For one thread."""

    def __init__(self, *, max_bytes: int, least_chars: int) -> None:
        """least_chars: what two prompts must have in common."""
        self._max_bytes, self._least = max_bytes, least_chars
        self._known: OrderedDict[int, Volatile[About]] = OrderedDict()
        """By a running number."""
        self._by_anchor: dict[tuple[About, int], int] = {}
        self._roots: dict[Key, Volatile[About]] = {}
        self._bytes = 0
        self._number = 0

    def __iter__(self) -> Iterator[Volatile[About]]:
        return (one for one in self._known.values() if one.variants > 1)

    def spoils(self, root: Key) -> bool:
        """Whether prompts that begin so are among those that differ by short pieces."""
        one = self._roots.get(root)
        return one is not None and one.variants > 1

    def add(self, prompt: Prompt, about: About, root: Key) -> None:
        """Look at a prompt whose beginning, known as `root`, was not met before."""
        text, starts = _flat(prompt)
        anchors = [(about, anchor) for anchor in _anchors(text)]
        numbers = dict.fromkeys(self._by_anchor[anchor] for anchor in anchors if anchor in self._by_anchor)
        for number in list(numbers)[:_TRIES]:
            one = self._known.get(number)
            if one is not None and self._alike(one, text):
                self._known.move_to_end(number)
                self._note_root(one, root)
                return
        self._number += 1
        one = Volatile(about, text, starts, set())
        self._known[self._number] = one
        self._note_root(one, root)
        self._by_anchor.update(dict.fromkeys(anchors, self._number))
        self._bytes += _BYTES + sys.getsizeof(text)
        while self._bytes > self._max_bytes and len(self._known) > 1:
            self._forget()

    def _alike(self, one: Volatile[About], text: str) -> bool:
        found, shared = differences(one.text, text)
        if not found or shared < self._least:
            return False
        one.variants += 1
        one.shared += shared - found[0].at
        for difference in found:
            _note_spots(one, difference, text)
        return True

    def _note_root(self, one: Volatile[About], root: Key) -> None:
        if root not in one.roots and len(one.roots) < _MOST_ROOTS:
            one.roots.add(root)
            self._bytes += _ROOT_BYTES
            self._roots[root] = one

    def _forget(self) -> None:
        number, gone = next(
            ((number, one) for number, one in self._known.items() if one.variants == 1), next(iter(self._known.items()))
        )
        del self._known[number]
        self._bytes -= _BYTES + sys.getsizeof(gone.text) + _ROOT_BYTES * len(gone.roots)
        for root in gone.roots:
            if self._roots.get(root) is gone:
                del self._roots[root]
        for anchor in _anchors(gone.text):
            if self._by_anchor.get((gone.about, anchor)) == number:
                del self._by_anchor[gone.about, anchor]


def differences(one: str, other: str) -> tuple[list[Difference], int]:
    """Short pieces in which two texts differ, each followed by a run that is alike; and the length of all such runs.

    Ends where no more is alike.
    """
    found: list[Difference] = []
    at = other_at = shared = 0
    while len(found) < _MOST_PIECES:
        same = common_length(one[at:], other[other_at:]) if at else common_length(one, other)
        at, other_at, shared = at + same, other_at + same, shared + same
        if min(len(one) - at, len(other) - other_at) < _ANCHOR:
            break
        ahead = next(
            (
                (length, hit - other_at)
                for length in range(LONGEST + 1)
                if len(anchor := one[at + length : at + length + _ANCHOR]) == _ANCHOR
                and (hit := other.find(anchor, other_at, other_at + LONGEST + _ANCHOR)) >= 0
            ),
            None,
        )
        if ahead is None:
            break
        found.append(Difference(at, ahead[0], other_at, ahead[1]))
        at, other_at = at + ahead[0], other_at + ahead[1]
    return found, shared


def varies(one: Content, other: Content, *, least_chars: int) -> bool:
    """Whether two contents are alike but for short pieces, and at least so long where they are alike."""
    found, shared = differences(_joined(one), _joined(other))
    return bool(found) and shared >= least_chars


def kinds_at(text: str, at: int, length: int) -> list[tuple[str, int, int]]:
    """What the piece of a text consists of, or is part of: kinds, and where each begins and ends."""
    start = max(0, at - _AROUND)
    return [
        (str(match.lastgroup).replace("_", " "), match.start(), match.end())
        for match in _KINDS.finditer(text, start, at + length + _AROUND)
        if match.start() <= at + length and at <= match.end()
    ]


def _note_spots(one: Volatile[About], difference: Difference, text: str) -> None:
    mine = kinds_at(one.text, difference.at, difference.length)
    theirs = kinds_at(text, difference.other_at, difference.other_length)
    if not mine or [kind for kind, _, _ in mine] != [kind for kind, _, _ in theirs]:
        mine = [("text", difference.at, difference.at + difference.length)]
        theirs = [("text", difference.other_at, difference.other_at + difference.other_length)]
    for (kind, start, end), (_, other_start, other_end) in zip(mine, theirs, strict=True):
        if one.text[start:end] != text[other_start:other_end]:
            _note_spot(one, kind, start, one.text[start:end], text[other_start:other_end])


def _note_spot(one: Volatile[About], kind: str, start: int, mine: str, theirs: str) -> None:
    spot = one.spots.get(start)
    if spot is None:
        if len(one.spots) == _MOST_PIECES:
            return
        message = max((index for index, begins in enumerate(one.starts) if begins <= start), default=0)
        spot = one.spots[start] = Spot(
            message=message,
            offset=max(0, start - one.starts[message]),
            kind=kind,
            shortest=len(mine),
            longest=len(mine),
            examples=[mine],
        )
    elif spot.kind != kind:
        spot.kind = "text"
    spot.shortest = min(spot.shortest, len(theirs))
    spot.longest = max(spot.longest, len(theirs))
    if len(spot.examples) < _EXAMPLES and theirs not in spot.examples:
        spot.examples.append(theirs)


def _joined(content: Content) -> str:
    if isinstance(content, Text):
        return content.text[:_COMPARED]
    return "\n".join(message.content for message in content.messages)[:_COMPARED]


def _flat(prompt: Prompt) -> tuple[str, tuple[int, ...]]:
    parts: list[str] = []
    starts: list[int] = []
    size = 0
    for piece in prompt.pieces:
        parts.append(f"\n{piece.role}\n")
        size += len(parts[-1])
        starts.append(size)
        parts.append(piece.text[: _COMPARED - size])
        size += len(parts[-1])
        if size >= _COMPARED:
            break
    return "".join(parts), tuple(starts)


def _anchors(text: str) -> list[int]:
    """A few of its first sentences, the same ones whatever else is in the text: those with the smallest checksums."""
    return sorted({zlib.crc32(match.encode("utf-8", "replace")) for match in _SENTENCE.findall(text[:_ANCHORED])})[
        :_ANCHORS
    ]
