"""What a question says, in pieces that can be compared with those of another."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace
from typing import Final

from nightfill.answers.guard_frames import coda, echoes, framed
from nightfill.answers.guard_personal import personal
from nightfill.answers.guard_source import Sort, Source
from nightfill.answers.guard_tense import AUXILIARIES, is_past, modals_of, tense_of
from nightfill.answers.guard_words import (
    FUNCTION,
    LIGHT,
    LINKS,
    NEGATIONS,
    OWNERS,
    PARTICIPLES,
    PERSONS,
    PREPOSITIONS,
    QUANTITIES,
)


@dataclass(frozen=True, slots=True)
class Atom:
    """One piece of what a question is about."""

    text: str
    sort: Sort
    role: str = ""
    """What the preposition right before it says, such as `from`; empty for none."""
    run: str = ""
    """The same, of the phrase that it stands in."""
    joined: bool = False
    """Comes right after `and` or `or`."""
    passive: bool | None = None
    """Of a word that may be a participle: whether something undergoes it. None of other words."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A question, taken apart."""

    kinds: tuple[str, ...]
    """What is asked, sentence by sentence: `how-to`, `when`, `yes-no`; empty for a sentence that asks nothing."""
    atoms: tuple[Atom, ...]
    """In the order of the question."""
    negations: tuple[str, ...]
    """For each, the word after it; empty for one that stands before the subject."""
    tense: str
    modals: frozenset[str]
    persons: tuple[str, ...]
    owners: frozenset[str]
    nested: bool
    """A clause stands within another one."""
    personal: bool
    words: int


@functools.lru_cache(maxsize=1 << 12)
def read(text: str) -> Reading:
    """`text` in pieces. English; other languages come out as plain words, which then have to be equal.

    Takes some 0.5 ms; the last few thousand are remembered, for a question is held against several candidates.
    """
    source = Source()
    line = source.line(text)
    draft = _Draft(source)
    for sentence in re.split(r"(?:^| )\.(?= |$)| , (?=(?:[a-z]+ ){0,5}why(?: \.|$))", line):
        draft.sentence(" ".join(sentence.split()).strip(" ,"))
    return Reading(
        kinds=tuple(draft.kinds),
        atoms=tuple(draft.atoms),
        negations=tuple(draft.negations),
        tense=tense_of(draft.verbs),
        modals=modals_of(draft.verbs),
        persons=tuple(draft.persons),
        owners=frozenset(draft.owners),
        nested=draft.nested,
        personal=personal(text),
        words=len(line.split()),
    )


_IMPLIED: Final = {
    (kind, word)
    for kind, words in (
        ("what-is", ("mean", "stand")),
        ("how much", ("cost", "costs", "price", "prices")),
        ("how long", ("take", "takes")),
        ("where", ("located", "situated")),
        ("why", ("happen", "occur")),
        ("what-for", ("used",)),
    )
    for word in words
}
"""Words that the kind of question says already."""
_TIMELESS: Final = {"how-to", "what-do"}
"""Kinds whose answer is the same in each tense: how something is done, what to do when it happens."""
_TENSELESS: Final = {"can", "must", "should", "why", "yes-no"}
"""Kinds whose frame tells nothing about the time of the rest."""
_TELLING: Final = QUANTITIES | LINKS | frozenset(("atleast", "atmost", "morethan", "lessthan", "outof", "anymore"))
_BE: Final = (" is", " are", " was", " were", " be")
_UNDERGONE: Final = {"is", "are", "am", "was", "were", "be", "been", "being", "get", "got", "gets", "getting"}
_DETERMINERS: Final = {"a", "an", "the", *OWNERS}
"""A participle after them only describes: the lost property."""
_CLAUSES: Final = LINKS | {"who", "whom", "whose", "which", "that", "what", "why", "how"}
"""They begin a clause within another one."""


@dataclass(slots=True)
class _Draft:
    """A reading in the making."""

    source: Source
    kinds: list[str] = field(default_factory=list)
    atoms: list[Atom] = field(default_factory=list)
    negations: list[str] = field(default_factory=list)
    verbs: list[str] = field(default_factory=list)
    """Every word from which tense and modality are read."""
    persons: list[str] = field(default_factory=list)
    owners: set[str] = field(default_factory=set)
    kind: str = ""
    role: str = ""
    run: str = ""
    joined: bool = False
    waiting: int = 0
    """Negations whose word is still to come."""
    passive: bool = False
    """What a participle would be here."""
    before: str = ""
    nested: bool = False

    def sentence(self, sentence: str) -> None:
        """Take in one sentence."""
        if self.kinds and self.kinds[-1] in {"how-to", "can"} and echoes(sentence):
            return
        if self.kinds == [""] and (kind := coda(sentence)):
            self.kinds[-1] = kind
            self.verbs *= kind not in _TIMELESS
            return
        self.kind, frame, rest = framed(sentence)
        if not self.kind and not rest:
            return
        self.kinds.append(self.kind)
        if self.kind in {"what-do", "what-if"}:
            rest = re.sub(r"^(?:if|when)\b", "", rest)
        words = re.sub(r"(?<=\w )when\b", "if", rest).split()
        if self.kind not in _TIMELESS:
            self.verbs += [*(() if self.kind in _TENSELESS else frame.split()), *words, "."]
        self.role, self.run, self.joined, self.waiting = "", "", False, 0
        self.passive = frame.rstrip().endswith(_BE)
        for at, word in enumerate(words):
            following = words[at + 1] if at + 1 < len(words) else ""
            self.listen(word)
            if word in NEGATIONS:
                # "why does not the printer work", but not "are not all swans white"
                inverted = bool(self.kind) and at == 1 and words[0] in AUXILIARIES and following not in QUANTITIES
                self.negations += [""] * inverted
                self.waiting += not inverted
            elif not self.mark(word, following):
                self.take(word)
            self.before = word
        self.negations += [""] * self.waiting

    def listen(self, word: str) -> None:
        """Notice what `word` makes of a participle after it."""
        if word in _CLAUSES:
            self.passive, self.nested = False, True
        elif word in AUXILIARIES:
            self.passive = word in _UNDERGONE

    def mark(self, word: str, following: str) -> bool:
        """Take in a word that is no atom: a sign, a person, a preposition. False for any other."""
        if word == ",":
            self.role = self.run = ""
        elif word == "and":
            self.joined, self.role = True, self.atoms[-1].role if self.atoms else ""
        elif word == "'s":
            self.atoms[-1:] = [replace(atom, role="of", run="of") for atom in self.atoms[-1:]]
        elif word in PERSONS and not (word == "her" and following and following not in FUNCTION):
            person = PERSONS[word] + ("-object" if word == "you" and self.atoms else "")
            self.persons += [person] * (person not in self.persons[-1:])
        elif word in OWNERS:
            self.owners.add(OWNERS[word])
        elif word in PREPOSITIONS and following and following not in PREPOSITIONS:
            self.role = self.run = PREPOSITIONS[word]
            self.joined = False
        else:
            return PREPOSITIONS.get(word) in {"of", "to"}
        return True

    def take(self, word: str) -> None:
        """Take in an atom, or a word of no content."""
        sort = Sort.WORD
        if word.startswith("‹"):
            word, sort = self.source.literals[int(word[1:-1])]
        elif re.fullmatch(r"-?\d.*", word):
            sort = Sort.NUMBER
        elif word in _TELLING or word in PREPOSITIONS:
            sort = Sort.QUANTITY
        elif word in LIGHT or (self.kind, word) in _IMPLIED:
            return
        elif word in self.source.names:
            sort = Sort.NAME
        self.negations += [word] * self.waiting
        undergone = sort in {Sort.WORD, Sort.NAME} and is_past(word, PARTICIPLES) and self.before not in _DETERMINERS
        passive = self.passive if undergone else None
        self.atoms.append(Atom(word, sort, self.role, self.run, self.joined, passive))
        self.role, self.joined, self.waiting = "", word == "or", 0
        if word in LINKS:
            self.run = ""
