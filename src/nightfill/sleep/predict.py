"""Questions that are likely to come: merged from all sources, ranked by expected use, bounded. Pure."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.state.answers import FORESEEN, AnswerCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nightfill.state.answers import Origin

MOST_CHARS: Final = 300
_LEAST_CHARS: Final = 8
_LEAST_WORDS: Final = 2
_MOST_WORDS: Final = 50
PAYS: Final = 0.1
"""Used share of prepared answers at which a source gets its whole quota."""
_PRIOR: Final = 10
"""So many answers' worth of doubt: a source is not judged by its first few."""
_WORD: Final = re.compile(r"\w+", re.UNICODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A question that may come."""

    text: str
    origin: Origin
    expected: float
    """Uses that it is expected to have, in the unit of the log: 1 is a question asked once just now."""
    span: tuple[int, int] | None = None
    """The characters of the context's text that it was made from."""


def normal(text: str) -> str:
    """What two ways of writing one question share: its words, in small letters."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def sensible(text: str) -> bool:
    """Whether it may be a question at all: words of letters, neither too few nor too many, and no babble."""
    words = normal(text).split()
    if not _LEAST_WORDS <= len(words) <= _MOST_WORDS or not _LEAST_CHARS <= len(text) <= MOST_CHARS:
        return False
    letters = sum(map(str.isalpha, text))
    marks = len(text) - sum(character.isalnum() or character.isspace() for character in text)
    repeats = max(words.count(word) for word in set(words))
    return 3 * letters >= len(text) >= 4 * marks and repeats <= max(2, len(words) // 3)


def quotas(counts: Mapping[Origin, AnswerCounts], most: int) -> dict[Origin, int]:
    """How many answers to keep prepared per source, each at most `most`.

    All of it at first, and while at least `PAYS` of what was prepared served; in proportion below, and one where nearly
    nothing served, so that better times are noticed.
    """
    found = {}
    for origin in FORESEEN:
        count = counts.get(origin, AnswerCounts())
        share = (count.used + PAYS * _PRIOR) / (count.stored + _PRIOR)
        found[origin] = math.ceil(most * min(1.0, share / PAYS))
    return found


def ranked(
    sources: Iterable[Sequence[Candidate]],
    limits: Mapping[Origin, int],
    most: int,
    *,
    alike: Callable[[Candidate, Candidate], bool] = lambda _one, _other: False,
) -> list[Candidate]:
    """The `most` questions with the most expected uses, at most `limits` of each source.

    Of those with the same words, or `alike`, the first is kept. `alike` is asked for those alone that would be taken,
    so at most `most` times for each candidate.
    """
    candidates = sorted((one for source in sources for one in source), key=lambda one: -one.expected)
    left, taken, known = dict(limits), list[Candidate](), set[str]()
    for one in candidates:
        if len(taken) >= most:
            break
        words = normal(one.text)
        if words in known or left.get(one.origin, 0) < 1 or any(alike(one, other) for other in taken):
            continue
        known.add(words)
        left[one.origin] -= 1
        taken.append(one)
    return taken
