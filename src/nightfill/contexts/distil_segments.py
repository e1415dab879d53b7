"""A text cut into the pieces that distilling keeps or leaves: sentences, turns of a talk, code, rows, headings.

Segments are spans of the text, in order, that do not overlap; between them lies only white space. They are cut by form
alone, so that any text has them: prose, Markdown, reStructuredText, transcripts (`speaker: words`), sources, tables.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_CHARS: Final = 600
"""Of a segment that is no heading; longer ones are cut at sentences, then lines, then words."""
_TALK_SHARE: Final = 0.6
"""Of the lines that begin with a speaker; then the text is a transcript."""
_TALK_LINES: Final = 8
_TITLE_CHARS: Final = 90


class Kind(enum.StrEnum):
    """What a segment is."""

    HEADING = "heading"
    SENTENCE = "sentence"
    TURN = "turn"
    """What somebody says in a transcript, or a part of it."""
    CODE = "code"
    ROW = "row"
    """Of a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """`text[start:end]`, in characters."""

    start: int
    end: int
    kind: Kind
    section: int
    """0 before the first heading; grows with each heading."""
    lead: str = ""
    """What tells where it belongs, when the segment before it is left out: the speaker of a turn that was cut."""


_SENTENCE_END: Final = re.compile(
    r"[.!?…][\"')\]»”’]*(?:\s*\[\d[\d, –-]*\])*(?:\s\.)?(?P<gap>\s+)(?=[^\sa-z(\[]|[(\[\"'«“‘]+[A-Z0-9])"
    r"|[。！？](?P<none>)"
)
_ABBREVIATED: Final = re.compile(
    r"(?:\b(?:[A-Z]|e\.g|i\.e|etc|vs|cf|al|Fig|Figs|Dr|Mr|Mrs|Ms|Prof|No|approx|ca|St))\.$"
)
_SPEAKER: Final = re.compile(r"[ \t]*(?P<who>[^\W\d_][^:\n]{0,48}?):(?=\s|$)")
_MARKDOWN: Final = re.compile(r" {0,3}#{1,6}\s+\S")
_UNDERLINE: Final = re.compile(r"([=\-~^\"'`*+#]){3,}\s*$")
_FENCE: Final = re.compile(r"\s*(```|~~~)")
_ROW: Final = re.compile(r"\s*(\|.*\||\+[-=+]+\+|[^\t]*\t[^\t]*\t.*)\s*$")
_CODE: Final = re.compile(
    r"[ \t]*(?:(?:async )?def |class |import |from \S+ import |return\b|@\w|func |fn |pub |let |const |var |"
    r"static |if |else|elif |for |while |try|except|with |match |case |struct |enum |impl |package |use |#include|//|"
    r"/\*|\*|[{}\])];?,?$)"
    r"|.*[{};]\s*$|\s+\S.*[=(),:\[\]]\s*$"
)


def segments_of(text: str) -> list[Segment]:
    """The segments of `text`, which has `\\n` line ends."""
    lines = list(_lines(text))
    talk = _is_talk(text, lines)
    found: list[Segment] = []
    section = 0
    at = 0
    while at < len(lines):
        start, end = lines[at]
        line = text[start:end]
        upto = at + 1
        if not line.strip():
            pass
        elif _is_heading(text, lines, at, talk=talk):
            section += 1
            if at + 1 < len(lines) and _UNDERLINE.match(text[slice(*lines[at + 1])]) and not _MARKDOWN.match(line):
                upto = at + 2
            found.append(Segment(start=start, end=lines[upto - 1][1], kind=Kind.HEADING, section=section))
        elif talk:
            found += _turn(text, start, end, section)
        else:
            upto, kind = _block(text, lines, at)
            found += _cut(text, start, lines[upto - 1][1], kind, section)
        at = upto
    return found


def _lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield start, end
        start = end + 1


def _is_talk(text: str, lines: Sequence[tuple[int, int]]) -> bool:
    filled = [text[start:end] for start, end in lines if text[start:end].strip()]
    spoken = [match["who"] for line in filled if (match := _SPEAKER.match(line))]
    # The same few speak again and again; the keys of a list of settings do not.
    return (
        len(spoken) >= _TALK_LINES
        and len(spoken) >= _TALK_SHARE * len(filled)
        and len(set(spoken)) <= max(2, len(spoken) // 3)
    )


def _is_heading(text: str, lines: Sequence[tuple[int, int]], at: int, *, talk: bool) -> bool:
    line = text[slice(*lines[at])]
    if _MARKDOWN.match(line) and not line.startswith("#!"):
        return True
    if talk or len(line) > _TITLE_CHARS or line[:1].isspace():
        return False
    after = text[slice(*lines[at + 1])] if at + 1 < len(lines) else ""
    if _UNDERLINE.match(after) and len(after.strip()) >= len(line.strip()) > 0 and not _UNDERLINE.match(line):
        return True
    alone = not after.strip() and (at == 0 or not text[slice(*lines[at - 1])].strip())
    titled = line[:1].isupper() and line.rstrip()[-1:].isalnum() and ": " not in line and not _CODE.match(line)
    return alone and titled and len(line.split()) <= 12


def _turn(text: str, start: int, end: int, section: int) -> list[Segment]:
    match = _SPEAKER.match(text, start, end)
    if match is None:
        return _cut(text, start, end, Kind.TURN, section)
    if end - start <= MAX_CHARS // 2:
        return [Segment(start=start, end=end, kind=Kind.TURN, section=section)]
    return _cut(text, start, end, Kind.TURN, section, lead=f"{match['who']}: ")


def _block(text: str, lines: Sequence[tuple[int, int]], at: int) -> tuple[int, Kind]:
    """The line after the block that begins at line `at`, and what it is."""
    line = text[slice(*lines[at])]
    fence = _FENCE.match(line)
    if fence is not None:
        upto = at + 1
        while upto < len(lines) and not text[slice(*lines[upto])].strip().startswith(fence[1]):
            upto += 1
        return min(upto + 1, len(lines)), Kind.CODE
    if _ROW.match(line):
        return at + 1, Kind.ROW
    upto = at + 1
    while upto < len(lines) and text[slice(*lines[upto])].strip():
        upto += 1
    block = [text[slice(*span)] for span in lines[at:upto]]
    if 2 * sum(bool(_CODE.match(one)) for one in block) >= len(block):
        return upto, Kind.CODE
    # Prose goes on over lines; entries of a list and rows begin anew.
    for place in range(at + 1, upto):
        if re.match(r"\s*([-*+•]|\d+[.)]|:\w+:|\.\.)\s|\s*\|", text[slice(*lines[place])]):
            return place, Kind.SENTENCE
    return upto, Kind.SENTENCE


def _cut(text: str, start: int, end: int, kind: Kind, section: int, *, lead: str = "") -> list[Segment]:
    """`text[start:end]` as segments of at most `MAX_CHARS`: sentences, where it is prose."""
    spans: list[tuple[int, int]] = []
    prose = kind in (Kind.SENTENCE, Kind.TURN)
    for low, high in _sentences(text, start, end) if prose else [(start, end)]:
        while high - low > MAX_CHARS:
            middle = max(text.rfind("\n", low + 1, low + MAX_CHARS), 0) or text.rfind(" ", low + 1, low + MAX_CHARS)
            middle = middle if middle > low else low + MAX_CHARS
            spans.append((low, middle))
            low = middle
        spans.append((low, high))
    found: list[Segment] = []
    for low, high in spans:
        piece = text[low:high]
        low += len(piece) - len(piece.lstrip() if prose else piece.lstrip("\n"))
        high = low + len(text[low:high].rstrip())
        if high > low:
            found.append(Segment(start=low, end=high, kind=kind, section=section, lead=lead if found else ""))
    return found


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    low = start
    for match in _SENTENCE_END.finditer(text, start, end):
        if _ABBREVIATED.search(text, max(low, match.start() - 8), match.start() + 1):
            continue
        yield low, match.start(match.lastgroup or 0)
        low = match.end()
    if low < end:
        yield low, end
