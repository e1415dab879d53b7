"""Merging, ranking and bounding of foreseen questions."""

from __future__ import annotations

import pytest

from nightfill.sleep.predict import Candidate, normal, quotas, ranked, sensible
from nightfill.state.answers import FORESEEN, AnswerCounts, Origin

FREE = dict.fromkeys(FORESEEN, 100)


def one(text: str, expected: float = 1.0, origin: Origin = Origin.LOG) -> Candidate:
    return Candidate(text=text, origin=origin, expected=expected)


@pytest.mark.parametrize(
    ("text", "is_sensible"),
    [
        ("How do I reset it?", True),
        ("Wie setze ich es zurück?", True),
        ("如何 重置 这个 设备 的 密码?", True),
        ("What?", False),
        ("", False),
        ("12 34 56 78 90?", False),
        ("the the the the the the?", False),
        ("%$ && || ## @@ ??", False),
        ("why " * 60, False),
        ("a very long word " + "x" * 400, False),
    ],
)
def test_babble_is_no_question(text: str, is_sensible: bool) -> None:
    assert sensible(text) is is_sensible


def test_marks_blanks_and_capitals_make_no_other_question() -> None:
    assert normal("  What is\tRSV ? ") == normal("what is rsv") != normal("what is rsv2")


def test_what_is_expected_most_comes_first_whatever_its_source() -> None:
    log, structure = [one("asked twice a day", 2.0), one("asked last year", 0.01)], [one("a heading here", 0.1)]
    taken = ranked([log, structure], FREE, 2)
    assert [candidate.text for candidate in taken] == ["asked twice a day", "a heading here"]


def test_of_the_same_words_the_likelier_is_kept() -> None:
    taken = ranked([[one("What is RSV?", 0.1, Origin.STRUCTURE)], [one("what is RSV", 1.0)]], FREE, 10)
    assert [(candidate.text, candidate.origin) for candidate in taken] == [("what is RSV", Origin.LOG)]


def test_of_those_that_are_alike_the_likelier_is_kept() -> None:
    asked = [one("how do I begin", 3.0), one("how do I start", 2.0), one("how do I end", 1.0)]
    taken = ranked([asked], FREE, 10, alike=lambda a, b: {a.text[-5:], b.text[-5:]} == {"begin", "start"})
    assert [candidate.text for candidate in taken] == ["how do I begin", "how do I end"]


def test_each_source_stays_within_its_quota() -> None:
    logs = [one(f"question {name} of the log") for name in "abc"]
    headings = [one(f"heading {name} of the text", 0.5, Origin.STRUCTURE) for name in "abc"]
    taken = ranked([logs, headings], {Origin.LOG: 1, Origin.STRUCTURE: 2}, 10)
    assert [candidate.origin for candidate in taken] == [Origin.LOG, Origin.STRUCTURE, Origin.STRUCTURE]


@pytest.mark.parametrize(
    ("stored", "used", "quota"),
    [(0, 0, 50), (10, 1, 50), (50, 6, 50), (50, 0, 9), (50, 2, 25), (5000, 0, 1), (5000, 5000, 50)],
)
def test_a_source_whose_predictions_are_not_used_gets_fewer(stored: int, used: int, quota: int) -> None:
    counts = {Origin.MODEL: AnswerCounts(stored=stored, used=used, uses=used)}
    found = quotas(counts, 50)
    assert (found[Origin.MODEL], found[Origin.LOG], found[Origin.STRUCTURE]) == (quota, 50, 50)


def test_no_quota_means_no_questions() -> None:
    assert set(quotas({}, 0).values()) == {0}
    assert ranked([[one("what is it about")]], quotas({}, 0), 0) == []
