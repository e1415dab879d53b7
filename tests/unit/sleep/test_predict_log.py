"""Questions foreseen from those that were asked."""

from __future__ import annotations

import pytest

from nightfill.sleep.predict import normal
from nightfill.sleep.predict_log import HALF_LIFE_S, from_log, recurring
from nightfill.state.answers import Asked, Origin

NOW_S = 1.7e9


def asked(*texts: str, ago_s: float = 0.0) -> list[Asked]:
    return [Asked(text=text, at_s=NOW_S - ago_s) for text in texts]


def foreseen(log: list[Asked]) -> dict[str, float]:
    """By similarity of words."""

    def alike(i: int, j: int) -> float:
        one, other = (set(normal(log[n].text).split()) for n in (i, j))
        share = len(one & other) / len(one | other)
        return share if share >= 0.5 else 0.0

    candidates = from_log(log, alike, now_s=NOW_S)
    assert {candidate.origin for candidate in candidates} <= {Origin.LOG}
    return {candidate.text: candidate.expected for candidate in candidates}


def test_a_question_is_expected_as_often_as_its_cluster_was_asked() -> None:
    log = asked("how do I install it", "how do I install it", "how can I install it", "what does it cost")
    assert foreseen(log) == pytest.approx({"how do I install it": 3.0, "what does it cost": 1.0})


def test_the_medoid_speaks_for_its_cluster() -> None:
    log = asked("please how do I install it", "how do I install it", "how do I install it now", "how do I install it")
    assert list(foreseen(log)) == ["how do I install it"]


def test_old_questions_count_less() -> None:
    log = asked("what is new in it") + asked("what was old in it", ago_s=HALF_LIFE_S)
    assert foreseen(log) == pytest.approx({"what is new in it": 1.0, "what was old in it": 0.5})


def test_a_clock_that_goes_back_makes_no_question_count_more_than_once() -> None:
    assert foreseen(asked("what comes next then", ago_s=-1e6)) == {"what comes next then": 1.0}


def test_babble_in_the_log_is_left_out() -> None:
    assert foreseen(asked("?", "aaa", "1 2 3 4 5")) == {}


def test_what_several_contexts_were_asked_is_foreseen_for_another() -> None:
    logs = [
        asked("Summarize the whole meeting.", "who was there at all"),
        asked("summarize the whole meeting", "Summarize the whole meeting."),
        asked("what did it cost"),
        [],
    ]
    (found,) = recurring(logs, "A text of something else.")
    assert (found.text, found.origin) == ("Summarize the whole meeting.", Origin.LOG)
    assert found.expected == pytest.approx(2 / 3), "a context nobody asked says nothing"


def test_what_one_other_context_was_asked_is_foreseen_where_the_text_is_about_it() -> None:
    logs = [asked(*["How was the remote control tested?"] * 9), asked("what of the sales forecast")]
    assert [(one.text, one.expected) for one in recurring(logs, "Each remote has a control that was tested.")] == [
        ("How was the remote control tested?", 0.5)
    ]
    assert recurring(logs, "Each remote has a button.") == []
    assert recurring([], "anything") == []
