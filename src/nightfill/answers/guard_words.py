"""Words of questions: what form they are of, which carry no content, which may stand for each other.

The lists are in `words.txt` and `synonyms.txt` beside this module.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Final


def sections(name: str) -> dict[str, list[str]]:
    """The lines of the data file `name` by the headings in brackets before them, without comments and empty lines."""
    found: dict[str, list[str]] = {"": []}
    heading = ""
    for line in resources.files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            heading = line[1:-1]
            found[heading] = []
        elif line and not line.startswith("#"):
            found[heading].append(line)
    return found


def _table(lines: list[str]) -> dict[str, str]:
    """Word -> what is before the colon of its line."""
    return {word: line.partition(":")[0] for line in lines for word in line.partition(":")[2].split()}


_WORDS: Final = sections("words.txt")
LIGHT: Final = frozenset(" ".join(_WORDS["light"]).split())
NEGATIONS: Final = frozenset(" ".join(_WORDS["negations"]).split())
QUANTITIES: Final = frozenset(" ".join(_WORDS["quantities"]).split())
OPTIONAL: Final = frozenset(" ".join(_WORDS["optional"]).split())
LINKS: Final = frozenset(" ".join(_WORDS["links"]).split())
WHOLE: Final = frozenset(" ".join(_WORDS["whole"]).split())
PREPOSITIONS: Final = _table(_WORDS["prepositions"])
WEAK: Final = frozenset(("of", "in", "at", "on", "to", "with"))
"""Roles that a noun in front of another does without ("the plan's price", "price of the plan")."""
PERSONS: Final = _table(_WORDS["persons"])
OWNERS: Final = _table(_WORDS["owners"])
PASTS: Final = _table([entry.replace(",", " ") for line in _WORDS["verbs"] for entry in line.split()])
"""Irregular form that tells the past -> verb."""
PARTICIPLES: Final = frozenset(PASTS) | {"cut", "hit", "hurt", "put", "read", "set", "shut", "split", "spread"}
IRREGULAR: Final = PASTS | _table([entry.replace(",", " ") for line in _WORDS["nouns"] for entry in line.split()])
FUNCTION: Final = LIGHT | NEGATIONS | LINKS | PREPOSITIONS.keys() | PERSONS.keys() | {"who", "and"}
"""In capitals these are no words but names: US, IT, WHO."""


@functools.lru_cache(maxsize=1 << 14)
def forms(word: str) -> frozenset[str]:
    """`word`, lower case, and what it may be a plural, past or -ing form of. Degrees stay: cheaper is not cheap.

    Crude on purpose: what counts is that forms of one word share an entry, and that different words seldom do.
    """
    found = {word}
    if word in IRREGULAR:
        found.add(IRREGULAR[word])
    elif word in WHOLE or len(word) <= 3 or not word.isalpha():
        pass
    elif word.endswith(("ies", "ied")):
        found |= {word[:-3] + "y", word[:-1]}
    elif word.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        found.add(word[:-2])
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        found.add(word[:-1])
    else:
        found |= _unended(word, "ing") | _unended(word, "ed")
    for form in tuple(found):
        if form not in WHOLE:
            found.update(_derived(form))
    return frozenset(found)


def _unended(word: str, ending: str) -> set[str]:
    """What `word` may be the -ing or -ed form of."""
    base = word.removesuffix(ending)
    if base == word or len(base) < 2 or not any(letter in "aeiouy" for letter in base):
        return set()
    return {base, base + "e", base[:-1]} if base[-1] == base[-2] else {base, base + "e"}


def _derived(word: str) -> set[str]:
    """The verb behind a noun (installation, payment), and -ize for -ise."""
    found = {word[:-2] + "ze"} if word.endswith("ise") and len(word) > 6 else set()
    base = word.removesuffix("ation")
    if base != word and len(base) >= 4:
        found |= {base, base + "e", base + "ate", base + "ize"}
    base = word.removesuffix("ion")
    if base != word and len(base) >= 5:
        found |= {base, base + "e"}
    if word.endswith("ly") and len(word) > 5:
        found |= {word[:-3] + "y"} if word.endswith("ily") else {word[:-2]}
    base = word.removesuffix("ment")
    return found | {base} if base != word and len(base) >= 3 else found


@functools.cache
def groups() -> dict[str, frozenset[int]]:
    """Word -> numbers of the lines of synonyms that it is on."""
    found: dict[str, set[int]] = {}
    for number, line in enumerate(sections("synonyms.txt")[""]):
        for word in line.split():
            found.setdefault(word, set()).add(number)
    return {word: frozenset(numbers) for word, numbers in found.items()}


def alike(one: str, other: str) -> bool:
    """Whether two words are forms of one word, or may stand for each other."""
    these, those, table = forms(one), forms(other), groups()
    if not these.isdisjoint(those):
        return True
    numbers = {number for form in these for number in table.get(form, ())}
    return any(not numbers.isdisjoint(table.get(form, ())) for form in those)
