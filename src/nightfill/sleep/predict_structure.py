"""Questions foreseen from a text's structure: headings, contents, questions with answers, signatures, talk. Pure."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Final

from nightfill.sleep.predict import Candidate, sensible
from nightfill.sleep.predict_sentences import from_sentences
from nightfill.state.answers import Origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WHOLE: Final = 0.1
"""Expected uses of a question about the whole text, and of the others: questions that the text itself asks, headings,
signatures, points of an agenda.
"""
FAQ: Final = 0.1
HEADING: Final = 0.05
SIGNATURE: Final = 0.03
TOPIC: Final = 0.02
_MOST_HEADING_WORDS: Final = 10
_LEAST_TURNS: Final = 10
_SPEAKERS_ASKED: Final = 6

_MARKDOWN: Final = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
_UNDERLINED: Final = re.compile(r"^(?P<title>\S.{1,100})\n(?P<line>([=\-~^\"'#*+])\3{2,})[ \t]*$", re.MULTILINE)
_NUMBERED: Final = re.compile(
    r"^[ \t]*(?:\d{1,2}\.)*\d{1,2}\.?[ \t]+([A-Z][^.?!\n]{2,80}?)[ \t.]*(?:\d{1,4})?$", re.MULTILINE
)
_QUESTION: Final = re.compile(
    r"^[ \t]*(?:[-*#>]{1,6}[ \t]+|\d{1,3}[.)][ \t]+|Q(?:uestion)?[ \t]?\d{0,3}[ \t]?[.:)][ \t]*)?(?:\*\*|__)?"
    r"([A-Z][^\n?]{6,200}\?)(?:\*\*|__)?[ \t]*$",
    re.MULTILINE,
)
_PYTHON: Final = re.compile(r"^[ \t]*(?P<kind>async def|def|class)[ \t]+(?P<name>[A-Za-z]\w*)", re.MULTILINE)
_OTHER_CODE: Final = re.compile(
    r"^[ \t]*(?:export[ \t]+|pub(?:\(\w+\))?[ \t]+|public[ \t]+|static[ \t]+|async[ \t]+)*"
    r"(?P<kind>fn|func|function|struct|interface|trait|enum)[ \t]+(?P<name>[A-Za-z]\w*)",
    re.MULTILINE,
)
_TURN: Final = re.compile(r"^([A-Z][\w .'-]{0,40}):[ \t]\S", re.MULTILINE)
_TOPIC: Final = re.compile(
    r"\b(?:move on to|moving on to|turn to|go on to|agenda (?:item )?is|topic is|item is|let us discuss|let's discuss|"
    r"talk about|present(?:ation)? (?:on|about))[ \t]+"
    r"((?:the |our )?[a-z][\w-]*(?: (?!and\b|so\b|but\b|that\b|then\b)[a-z][\w-]*){0,4})",
    re.IGNORECASE,
)
_ABSTRACT: Final = re.compile(r"^(?:abstract|summary)\b[:.\s]", re.IGNORECASE | re.MULTILINE)
_GERUND: Final = re.compile(r"^([A-Za-z]{3,}ing)\b(.*)$")
_HOW_TO: Final = re.compile(r"^how to\b(.*)$", re.IGNORECASE)
_PLAIN: Final = re.compile(r"[`*_\\]|:\w+:|<[^>]*>|\{#.*?\}|\[|\]\([^)]*\)")


def from_structure(text: str) -> list[Candidate]:
    """Questions about `text` that its own structure suggests, each with the place that should answer it."""
    found = chain(_whole(text), _asked(text), _headings(text), _signatures(text), _topics(text), from_sentences(text))
    return [one for one in found if sensible(one.text)]


def _candidate(text: str, expected: float, start: int, stop: int) -> Candidate:
    return Candidate(text=text, origin=Origin.STRUCTURE, expected=expected, span=(start, stop))


def _whole(text: str) -> Iterator[Candidate]:
    speakers = _speakers(text)
    if speakers:
        for question in ("Summarize the meeting.", "What was the meeting about?", "What was decided in the meeting?"):
            yield _candidate(question, WHOLE, 0, len(text))
        for speaker in speakers[:_SPEAKERS_ASKED]:
            yield _candidate(f"What did {speaker} say?", TOPIC, 0, len(text))
    elif abstract := _ABSTRACT.search(text):
        stop = text.find("\n\n", abstract.end())
        stop = len(text) if stop < 0 else stop
        for question in ("What is the paper about?", "What are the main findings?", "Summarize the paper."):
            yield _candidate(question, WHOLE, abstract.start(), stop)


def _asked(text: str) -> Iterator[Candidate]:
    """What the text asks itself, a line each, and answers until it asks the next. Who talks asks each other."""
    if _speakers(text):
        return
    for match, stop in _until_next(_QUESTION.finditer(text), len(text)):
        yield _candidate(_PLAIN.sub("", match[1]), FAQ, match.start(), stop)


def _headings(text: str) -> Iterator[Candidate]:
    headings = {match.start(): match[2] for match in _MARKDOWN.finditer(text)}
    headings |= {match.start(): match["title"] for match in _UNDERLINED.finditer(text)}
    headings |= {match.start(1): match[1] for match in _NUMBERED.finditer(text)}
    starts = sorted(headings)
    for start, stop in pairwise([*starts, len(text)]):
        question = _of_heading(_PLAIN.sub("", headings[start]).strip(" .:"), text)
        if question is not None:
            yield _candidate(question, HEADING, start, stop)


def _of_heading(title: str, text: str) -> str | None:
    words = title.split()
    if not words or len(words) > _MOST_HEADING_WORDS:
        return None
    if title.endswith("?"):
        return title
    if how_to := _HOW_TO.match(title):
        return f"How do I{how_to[1]}?"
    if gerund := _GERUND.match(title):
        verb = _infinitive(gerund[1].lower(), text)
        return f"How do I {verb}{gerund[2]}?" if verb else None
    be = "are" if re.search(r"[^s]s$", title) else "is"
    # A title's capital goes, that of a name like `HTTP` stays.
    return f"What {be} {title[0].lower() + title[1:] if words[0][1:].islower() else title}?"


def _infinitive(gerund: str, text: str) -> str | None:
    """Of the ways to take off `-ing`, the one that the text itself uses."""
    stem = gerund.removesuffix("ing")
    forms = [stem, f"{stem}e", *([stem[:-1]] if len(stem) > 2 and stem[-1] == stem[-2] else [])]
    used = Counter({form: len(re.findall(rf"\b{form}s?\b", text, re.IGNORECASE)) for form in forms})
    form, times = used.most_common(1)[0]
    return form if times else None


def _signatures(text: str) -> Iterator[Candidate]:
    found = sorted(chain(_PYTHON.finditer(text), _OTHER_CODE.finditer(text)), key=lambda match: match.start())
    for match, stop in _until_next(found, len(text)):
        named = match["kind"] in ("class", "struct", "interface", "trait", "enum")
        question = f"What is {match['name']}?" if named else f"What does {match['name']} do?"
        if not match["name"].startswith("test_"):
            yield _candidate(question, SIGNATURE, match.start(), stop)


def _topics(text: str) -> Iterator[Candidate]:
    """What those who talk go on to, until they go on to the next."""
    if not _speakers(text):
        return
    for match, stop in _until_next(_TOPIC.finditer(text), len(text)):
        yield _candidate(f"Summarize the discussion about {match[1]}.", TOPIC, match.start(), stop)


def _speakers(text: str) -> list[str]:
    """Those who talk in a transcript, who talks most first; nobody where it is none."""
    turns = Counter(match[1] for match in _TURN.finditer(text))
    lines = sum(1 for line in text.splitlines() if line.strip())
    count = sum(turns.values())
    return [name for name, _ in turns.most_common()] if len(turns) > 1 and count >= max(_LEAST_TURNS, lines / 2) else []


def _until_next(matches: Iterable[re.Match[str]], end: int) -> Iterator[tuple[re.Match[str], int]]:
    """Each match with where the next one begins."""
    found = list(matches)
    return zip(found, [*(match.start() for match in found[1:]), end], strict=False)
