"""The guard: whether the answer to one question may serve another that lies near it.

No similarity of embeddings tells a paraphrase from a question with one word exchanged: "safe" and "unsafe" lie nearer
than most paraphrases. So each piece of one question must be found in the other: numbers, names, quotations as they are,
other words in some form or as a synonym; and the kind of question, negations, tense and the order of the pieces must
agree. What is not understood is refused.
"""

from __future__ import annotations

import enum
import functools
import re
from typing import TYPE_CHECKING, Final

from nightfill.answers.guard_reading import read
from nightfill.answers.guard_source import Sort
from nightfill.answers.guard_words import OPTIONAL, WEAK, alike, forms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.answers.guard_reading import Atom, Reading

MAX_CHARACTERS: Final = 1000
MAX_WORDS: Final = 80
"""Longer questions are answered anew: beyond the embedding's view, and rarely the same."""


COMPOUND_ATOMS: Final = 3
"""So far apart may be the two parts of a compound that a preposition takes apart."""


THINGS: Final = {"", "what", "what-is"}
"""Kinds that ask about a thing; a thing named alone is such a question too."""
CHOICES: Final = {"which", "what", "what-is"}
"""Kinds between which only the order of words decides."""
PLAIN: Final = {Sort.WORD, Sort.QUANTITY}
"""Atoms that a question can be about as a whole, and so deny."""
MEANS: Final = {"by", "with"}
ADVERB: Final = re.compile(
    r"\w{3}(al|t|te|nt|us|ful|ss|ng|ed|ve|ab|ib|ck|ow|fe|si|ri)ly$|^(online|abroad|daily|together|now|today|tonight|tomorrow|yesterday)$"
)
LOOSE: Final = {Sort.WORD, Sort.NAME}
"""Atoms that a synonym may stand for, and a weak preposition may come before."""


class Refusal(enum.StrEnum):
    """Why a near answer may not serve; a label of metrics."""

    LENGTH = "length"
    PERSONAL = "personal"
    QUESTION = "question"
    NEGATION = "negation"
    TENSE = "tense"
    PERSON = "person"
    NUMBER = "number"
    DATE = "date"
    NAME = "name"
    QUOTED = "quoted"
    CODE = "code"
    QUANTITY = "quantity"
    WORD = "word"
    ROLE = "role"
    ORDER = "order"


def agree(asked: str, stored: str) -> Refusal | None:
    """None when the answer to `stored` may serve `asked`; otherwise the first reason against it.

    A pure function of two texts, the same either way round; some 0.6 ms, and half of that for a question read before.
    Safe to call from several threads. It expects candidates that an index found near, and asks no embedding.
    """
    if max(len(asked), len(stored)) > MAX_CHARACTERS:
        return Refusal.LENGTH
    one, other = read(asked), read(stored)
    if one.personal or other.personal:
        return Refusal.PERSONAL
    if max(one.words, other.words) > MAX_WORDS:
        return Refusal.LENGTH
    if not one.atoms or not other.atoms:
        return Refusal.LENGTH
    places = paired(one.atoms, other.atoms)
    if isinstance(places, Refusal):
        return places
    return frames_differ(one, other) or roles_differ(one.atoms, other.atoms, places)


def judge(asked: str, stored: Sequence[str]) -> tuple[int | None, str]:
    """The place of the first of `stored` whose answer may serve `asked`; else None, and what is against the first."""
    against = ""
    for place, other in enumerate(stored):
        refusal = agree(asked, other)
        if refusal is None:
            return place, ""
        against = against or refusal
    return None, against


def frames_differ(one: Reading, other: Reading) -> Refusal | None:
    """Whether something else is asked about the same pieces."""
    if not kinds_alike(one.kinds, other.kinds):
        return Refusal.QUESTION
    if len(one.negations) != len(other.negations):
        return Refusal.NEGATION
    if not all(map(functools.partial(negated_alike, one, other), one.negations, other.negations)):
        return Refusal.NEGATION
    if one.modals != other.modals or (one.tense != other.tense and not scheduled(one, other)):
        return Refusal.TENSE
    if one.persons != other.persons and not persons_fit(one.persons, other.persons):
        return Refusal.PERSON
    owners = one.owners ^ other.owners
    if owners and (owners - {"self", "you"} or (one.owners and other.owners)):
        return Refusal.PERSON
    return None


def negated_alike(one: Reading, other: Reading, mine: str, yours: str) -> bool:
    """Whether two negations deny the same: the same word, or, before the subject, whatever the question is about."""
    if mine and yours:
        return alike(mine, yours)
    plain = {atom.text for atom in (*one.atoms, *other.atoms) if atom.sort in PLAIN}
    return mine == yours or ({mine, yours} - {""} <= plain and not one.nested and not other.nested)


def scheduled(one: Reading, other: Reading) -> bool:
    """Whether one asks when something ends, the other when it will end."""
    return one.kinds == ("when",) and {one.tense, other.tense} == {"present", "future"}


def kinds_alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the same is asked, sentence by sentence: "how big" is "how large"."""
    return len(one) == len(other) and all(
        a == b
        or {a, b} <= THINGS
        or {a, b} <= CHOICES
        or (a.startswith("how ") and b.startswith("how ") and alike(a[4:], b[4:]))
        for a, b in zip(one, other, strict=True)
    )


def persons_fit(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether persons of one question may be silent in the other."""
    return (not one or not other) and not {*one, *other} - {"self", "self-object", "you", "you-object"}


def paired(one: Sequence[Atom], other: Sequence[Atom]) -> list[tuple[int, int]] | Refusal:
    """Which atom of `one` is which of `other`, in the order of `one`; or what has no counterpart."""
    free = dict(enumerate(other))
    pairs: list[tuple[int, int]] = []
    for equal in (True, False):  # equal words first, or a synonym could take what another needs
        for i, atom in enumerate(one):
            if any(i == done for done, _ in pairs):
                continue
            places = [j for j, mate in free.items() if mates(atom, mate, equal=equal)]
            if places:
                best = min(places, key=lambda j: (other[j].role != atom.role, j))
                del free[best]
                pairs.append((i, best))
    done = {i for i, _ in pairs}
    left = [atom for i, atom in enumerate(one) if i not in done] + list(free.values())
    left = [atom for atom in left if atom.text not in OPTIONAL]
    if left:
        return min((Refusal(atom.sort) for atom in left), key=list(Refusal).index)
    return sorted(pairs)


def mates(one: Atom, other: Atom, *, equal: bool) -> bool:
    """Whether two atoms say the same."""
    if one.text == other.text:
        return True
    return not equal and one.sort in LOOSE and other.sort in LOOSE and alike(one.text, other.text)


def roles_differ(one: Sequence[Atom], other: Sequence[Atom], pairs: Sequence[tuple[int, int]]) -> Refusal | None:
    """Whether the same pieces do something else: other prepositions, or another order of who does what to whom."""
    for i, j in pairs:
        if voices_differ(one[i], other[j]):
            return Refusal.ROLE
        both = {one[i].role, other[j].role}
        loose = both <= MEANS or (both - {""} <= WEAK and both & {"", "of"})
        if len(both) > 1 and not (loose and one[i].sort in LOOSE):
            return Refusal.ROLE
    for at, (i, j) in enumerate(pairs):
        for k, m in pairs[at + 1 :]:
            if j < m:
                continue
            first, second, there = (one[i], other[j]), (one[k], other[m]), (i, j, k, m)
            if any(adverb(atom) for atom in (*first, *second)) or moved(first, second):
                continue
            if not joined(one, other, there) and not compound(first, second, there):
                return Refusal.ORDER
    return None


def voices_differ(one: Atom, other: Atom) -> bool:
    """Whether something does in one question what it undergoes in the other: who fired, who was fired."""
    voices = {one.passive, other.passive}
    same_verb = not forms(one.text).isdisjoint(forms(other.text))
    return voices == {True, False} or (same_verb and voices == {True, None})


def moved(first: tuple[Atom, Atom], second: tuple[Atom, Atom]) -> bool:
    """Whether two pieces changed places as whole phrases, each with its preposition ("to Rome by train")."""
    return first[0].run == first[1].run != second[0].run == second[1].run


def adverb(atom: Atom) -> bool:
    """Whether it stands anywhere in a sentence: "permanently delete", "delete permanently"."""
    return atom.sort in {Sort.WORD, Sort.QUANTITY} and not atom.run and ADVERB.search(atom.text) is not None


def joined(one: Sequence[Atom], other: Sequence[Atom], there: tuple[int, int, int, int]) -> bool:
    """Whether two pieces are side by side with `and` between, on both sides."""
    i, j, k, m = there
    return k == i + 1 and j == m + 1 and one[k].joined and other[j].joined


def compound(first: tuple[Atom, Atom], second: tuple[Atom, Atom], there: tuple[int, int, int, int]) -> bool:
    """Whether they are the parts of "plan price" and "price of the plan"."""
    i, j, k, m = there
    near = k - i <= COMPOUND_ATOMS and j - m <= COMPOUND_ATOMS
    runs = (first[0].run, first[1].run, second[0].run, second[1].run)
    return near and any(runs in {("", role, "", ""), ("", "", role, "")} for role in WEAK)
