"""Questions that single sentences of a text answer: what a term means, what letters stand for. Pure; English."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from nightfill.sleep.predict import Candidate, normal
from nightfill.state.answers import Origin

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFINED: Final = 0.04
"""Expected uses of a question after a term that the text defines and uses everywhere; less for rarer ones."""
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9])|\n+")
_NOTES: Final = re.compile(r"\s*(?:\[[^\]]*\]|\([^()]*\))")
_SHORT: Final = re.compile(r"((?:\b[A-Za-z][\w-]*\s+){1,6})\(([A-Z][A-Za-z0-9-]{1,9})s?\)")
_DEFINITION: Final = re.compile(
    r"^(?P<term>[^,;:]{2,60}?)\s(?P<be>is|are|was|were)\s(?:an?|the|one\sof|called|known|defined|caused|characteri[sz]ed)\b"
)
_PLURAL: Final = {"is": "is", "was": "is", "are": "are", "were": "are"}
_POINTERS: Final = re.compile(
    r"^(?:(?:this|that|these|those|it|they|he|she|we|i|you|there|which|who|here|such|both|each|some|most|many|all|our|"
    r"their|its|his|her|another|other|one|what|how|why)\b|(?:and|but|or|if|when|while|since|because|although|as|in|on|"
    r"at|by|for|to|of|with|from)\s)",
    re.IGNORECASE,
)
_ARTICLE: Final = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)
_MOST_TERM_WORDS: Final = 5


def from_sentences(text: str) -> list[Candidate]:
    """What each definition and abbreviation of `text` answers; the first of each term."""
    words = Counter(normal(text).split())
    found: dict[str, Candidate] = {}
    for start, stop in _sentences(text):
        for question, term in _asked(text[start:stop]):
            # A text that speaks of it twenty times is about it.
            weight = min(1.0, min((words[word] for word in normal(term).split()), default=0) / 20)
            candidate = Candidate(text=question, origin=Origin.STRUCTURE, expected=DEFINED * weight, span=(start, stop))
            found.setdefault(question, candidate)
    return list(found.values())


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for gap in _SENTENCE.finditer(text):
        if gap.start() > start:
            yield start, gap.start()
        start = gap.end()
    if start < len(text):
        yield start, len(text)


def _asked(sentence: str) -> Iterator[tuple[str, str]]:
    """Questions, each with the term that it is about."""
    for before, short in _SHORT.findall(sentence):
        if any(_shortens(short, before.split()[-count:]) for count in range(1, len(before.split()) + 1)):
            yield f"What does {short} stand for?", short
            yield f"What is {short}?", short
    match = _DEFINITION.match(_NOTES.sub("", sentence).strip())
    if match is None or _POINTERS.match(match["term"]) or len(match["term"].split()) > _MOST_TERM_WORDS:
        return
    term = _ARTICLE.sub("", match["term"])
    yield f"What {_PLURAL[match['be']]} {_with_article(match['term'])}?", term


def _shortens(short: str, words: list[str]) -> bool:
    letters = "".join(part[0] for word in words for part in word.split("-") if part).casefold()
    return letters == re.sub(r"[^a-z]", "", short.casefold())


def _with_article(term: str) -> str:
    """A sentence's subject inside another sentence: `The virus` as `the virus`, names as they are."""
    return term[0].lower() + term[1:] if _ARTICLE.match(term) else term
