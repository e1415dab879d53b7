"""All sources of foreseen questions at once, and which questions one answer serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fakes.embedder import WordEmbedder
from nightfill.sleep.predict import quotas
from nightfill.sleep.predict_likeness import Likeness
from nightfill.sleep.predict_sources import chosen, gathered
from nightfill.state.answers import Asked, Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.answers.embed import Vectors
    from nightfill.sleep.predict import Candidate

TEXT = "# Draining the tank\n\nDrain the tank by its tap. A tap is a valve.\n"


def found(*, asked: Sequence[str] = (), written: str = "", most: int = 50, structure: bool = True) -> list[Candidate]:
    log = [Asked(text=text, at_s=0.0) for text in asked]
    wide = gathered(
        TEXT,
        asked=log,
        others=[],
        written=written,
        structure=structure,
        limits=quotas({}, most),
        most=most,
        vectors=vectors_of(asked),
        now_s=0.0,
    )
    return chosen(wide, limits=quotas({}, most), most=most, vectors=vectors_of([one.text for one in wide]))


def vectors_of(texts: Sequence[str]) -> dict[str, Vectors]:
    return dict(zip(texts, WordEmbedder().embed(texts), strict=True))


def test_each_source_has_its_part_and_the_log_comes_first() -> None:
    candidates = found(asked=["Who emptied the tank?"], written="1. When is the tank full?")
    assert [candidate.origin for candidate in candidates] == [
        Origin.LOG,
        Origin.MODEL,
        Origin.STRUCTURE,
        Origin.STRUCTURE,
    ]
    assert [candidate.text for candidate in candidates[:3]] == [
        "Who emptied the tank?",
        "When is the tank full?",
        "How do I drain the tank?",
    ]


def test_what_one_answer_serves_is_foreseen_once() -> None:
    candidates = found(asked=["how do I drain the tank", "How do I drain the tank?"], structure=True)
    assert [candidate.text for candidate in candidates if "drain" in candidate.text] == ["how do I drain the tank"]
    assert candidates[0].expected == 2.0


def test_the_structure_can_be_left_out() -> None:
    assert found(structure=False) == []


def test_a_bound_keeps_the_likeliest() -> None:
    assert [candidate.text for candidate in found(asked=["Who emptied the tank?"], most=1)] == ["Who emptied the tank?"]


def test_questions_that_need_answers_of_their_own_are_not_alike_however_near_they_are() -> None:
    texts = ["Does tap 3 open at night?", "Does tap 4 open at night?", "does tap 3 open at night", "Is it so?"]
    likeness = Likeness(texts, vectors_of(texts))
    assert likeness.alike(0, 2) == 1.0
    assert likeness.alike(0, 1) == 0.0
    assert likeness.alike(0, 3) == 0.0


def test_without_an_embedding_only_the_same_words_are_alike() -> None:
    likeness = Likeness(["Is the tank full?", "Is the tank full", "Is the big tank full?"], None)
    assert (likeness.alike(0, 1), likeness.alike(0, 2)) == (1.0, 0.0)
