"""Questions foreseen from a text's structure."""

from __future__ import annotations

import pytest

from nightfill.sleep.predict_structure import from_structure
from nightfill.state.answers import Origin

MANUAL = """# Boiler manual

## Installing the pump

Install the pump on a wall.

## How to drain the tank

Open the tap below.

Maintenance
-----------

Clean the filter once a year.

# Will it freeze?

It will not.
"""
CODE = '''
class Boiler:
    """Heats water."""

    async def heat(self, litres: float) -> None:
        """Heat so much."""

    def test_heat(self) -> None: ...

func Drain(tank Tank) error {
pub struct Valve {
'''
MEETING = "\n".join(
    line
    for number in range(6)
    for line in (f"Chair: Point {number} of ours.", f"Ann Lee: I see, let us discuss the new budget . {number}")
)


def questions(text: str) -> list[str]:
    found = from_structure(text)
    assert {one.origin for one in found} <= {Origin.STRUCTURE}
    assert all(one.expected > 0 for one in found)
    assert all(one.span is not None and 0 <= one.span[0] < one.span[1] <= len(text) for one in found)
    return [one.text for one in found]


def test_headings_become_questions_in_the_words_of_the_text() -> None:
    assert set(questions(MANUAL)) == {
        "What is boiler manual?",
        "How do I install the pump?",
        "How do I drain the tank?",
        "What is maintenance?",
        "Will it freeze?",
    }


def test_a_question_is_answered_between_its_place_and_the_next() -> None:
    (found,) = [one for one in from_structure(MANUAL) if one.text == "How do I install the pump?"]
    assert found.span is not None
    assert MANUAL[slice(*found.span)] == "## Installing the pump\n\nInstall the pump on a wall.\n\n"


def test_a_gerund_whose_verb_the_text_does_not_use_asks_nothing() -> None:
    assert questions("# Wuffling along\n\nNothing here.\n") == []


@pytest.mark.parametrize("mark", ["", "Q: ", "Q3. ", "3) ", "- ", "**", "Question 3: "])
def test_entries_of_a_faq_are_asked_as_they_stand(mark: str) -> None:
    end = "**" if mark == "**" else ""
    assert questions(f"\n{mark}Can I change my password?{end}\nYes, under settings.\n") == ["Can I change my password?"]


def test_contents_are_headings() -> None:
    text = "Contents\n1 Safety rules .......... 3\n2.1 Electrical wiring ..... 14\n3 HTTP headers\n"
    assert questions(text) == ["What are safety rules?", "What is electrical wiring?", "What are HTTP headers?"]


def test_signatures_become_questions_and_tests_do_not() -> None:
    assert set(questions(CODE)) == {
        "What is Boiler?",
        "What does heat do?",
        "What does Drain do?",
        "What is Valve?",
    }


def test_definitions_and_abbreviations_are_asked_for() -> None:
    text = (
        "Respiratory syncytial virus (RSV) was found in 1956. A boiler is a vessel that heats water. "
        "It is a cheap one. Valves are the weakest part. This is the last."
    )
    assert set(questions(text)) == {
        "What does RSV stand for?",
        "What is RSV?",
        "What is a boiler?",
        "What are Valves?",
    }


def test_what_a_text_speaks_of_often_is_likelier_to_be_asked() -> None:
    text = "Alpha is a letter. Omega is a letter. " + "Omega again. " * 9
    expected = {one.text: one.expected for one in from_structure(text)}
    assert expected["What is Omega?"] > expected["What is Alpha?"]


def test_a_meeting_is_asked_for_its_summary_its_speakers_and_its_points() -> None:
    found = questions(MEETING)
    assert "Summarize the meeting." in found
    assert "What did Ann Lee say?" in found
    assert "Summarize the discussion about the new budget." in found


def test_a_colon_makes_no_meeting() -> None:
    assert questions("Note: this is short.\nWarning: that is hot.\n") == []


def test_a_paper_is_asked_for_what_it_found() -> None:
    text = "On boilers\n\nAbstract: We heated water for years. It was hot.\n\nThe rest of it.\n"
    found = [one for one in from_structure(text) if one.text == "What are the main findings?"]
    assert [text[slice(*one.span)] for one in found if one.span] == ["Abstract: We heated water for years. It was hot."]


@pytest.mark.parametrize(
    "text",
    [
        "", "\n" * 100_000, "#" * 100_000, "-" * 100_000, "* " * 50_000, "A" * 100_000, "Aa " * 50_000 + "(AA)",
        "1." * 50_000, "(" * 50_000, "a: b\n" * 20_000, "\x00\ufffd" * 20_000,
    ],
)  # fmt: skip
def test_no_text_is_too_strange(text: str) -> None:
    assert len(questions(text)) <= 3
