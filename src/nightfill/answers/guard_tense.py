"""When something is asked about, and whether it is possible, advised or obligatory."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from nightfill.answers.guard_words import PASTS, WHOLE

if TYPE_CHECKING:
    from collections.abc import Collection

PAST: Final = frozenset(("did", "was", "were", "had"))
FUTURE: Final = frozenset(("will", "shall", "gonna"))
PRESENT: Final = frozenset(("is", "are", "am", "do", "does", "has", "have"))
MODALS: Final = {
    "can": "can", "could": "can", "may": "can", "might": "can", "possible": "can", "should": "should",
    "ought": "should", "must": "must", "would": "would",
}  # fmt: skip
AUXILIARIES: Final = PAST | FUTURE | PRESENT | MODALS.keys() | {"be", "been", "being", "get", "got", "gets", "to"}
_OBLIGED: Final = {("have", "to"), ("has", "to"), ("had", "to"), ("need", "to"), ("needs", "to"), ("required", "to")}
_ABLE: Final = {("able", "to"), ("allowed", "to"), ("permitted", "to")}


def tense_of(words: list[str]) -> str:
    """`past`, `future` or `present`, by the first word that tells."""
    for at, word in enumerate(words):
        after = words[at + 1 : at + 6]
        going = (word == "going" and after[:1] == ["to"]) or (word in PRESENT and after[:2] == ["going", "to"])
        if word in FUTURE or going:
            return "future"
        perfect = word in {"has", "have"} and any(is_past(other) or other == "been" for other in after)
        if word in PAST or perfect:
            return "past"
        if word in AUXILIARIES:
            return "present"
        if is_past(word):
            return "past"
    return "present"


def is_past(word: str, irregular: Collection[str] = PASTS) -> bool:
    """Whether a verb may be in its past form."""
    return word in irregular or (word.endswith("ed") and len(word) > 3 and word not in WHOLE)


def modals_of(words: list[str]) -> frozenset[str]:
    """What is possible, advised or obligatory."""
    found = {MODALS[word] for word in words if word in MODALS}
    for pair in pairwise(words):
        if pair in _OBLIGED:
            found.add("must")
        elif pair in _ABLE:
            found.add("can")
    return frozenset(found)
