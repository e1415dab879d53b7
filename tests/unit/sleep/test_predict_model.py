"""What is taken from a model that was asked for questions."""

from __future__ import annotations

import pytest

from nightfill.sleep.predict_model import from_model, prompt
from nightfill.state.answers import Origin

TEXT = "The valve of the boiler opens at three bar. Its pressure gauge and its filter are cleaned once a year."
TWO = ["When does the valve open?", "How often is the filter cleaned?"]


@pytest.mark.parametrize(
    "reply",
    [
        "When does the valve open?\nHow often is the filter cleaned?",
        "1. When does the valve open?\n2. How often is the filter cleaned?",
        "1) When does the valve open?\n\n2) How often is the filter cleaned?\n",
        "Sure! Here are the questions:\n\n- When does the valve open?\n- How often is the filter cleaned?\n\nBye!",
        "* **When does the valve open?**\n* *How often is the filter cleaned?*",
        'Q1: "When does the valve open?"\nQ2: "How often is the filter cleaned?"',
        "Question 1: When does the valve open?\nQuestion 2: How often is the filter cleaned?",
        '["When does the valve open?", "How often is the filter cleaned?"]',
        '```json\n["When does the valve open?", "How often is the filter cleaned?"]\n```',
        'Here you go: {"q": [{"q": "When does the valve open?"}, {"q": "How often is the filter cleaned?"}]} Bye!',
        '["When does the valve open?",\n "How often is the filter cleaned?",\n',
        "When does the valve open? How often is the filter cleaned?",
        "“When does the valve open?”\n«How often is the filter cleaned?»",
        "a) When does the valve open?\r\nb) How often is the filter cleaned?\r\n",
        "When does the valve open?\nwhen does the VALVE open ?\n1. How often is the filter cleaned?",
        "When does the valve open?\nIt opens at three bar of pressure.\nHow often is the filter cleaned?\nOnce a year.",
    ],
)
def test_questions_are_found_however_they_are_written(reply: str) -> None:
    found = from_model(reply, TEXT)
    assert [candidate.text for candidate in found] == TWO
    assert {candidate.origin for candidate in found} == {Origin.MODEL}
    assert found[0].expected > found[1].expected > 0


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I am sorry, I cannot do that.",
        "???\n1. ?\n- ?",
        "valve valve valve valve valve valve?",
        "What is the capital of France?",
        "x" * 100_000,
        "[" * 100_000,
        "1. " * 50_000,
        "\x00\ufffd\u202e" * 100,
        '{"a": {"b": [1, 2, null, true]}}',
    ],
)
def test_what_is_no_question_about_the_text_is_dropped(reply: str) -> None:
    assert from_model(reply, TEXT) == []


def test_a_request_for_a_summary_is_a_question_too() -> None:
    assert [one.text for one in from_model("Summarize how the boiler works.", TEXT)] == [
        "Summarize how the boiler works."
    ]
    assert from_model("Summary of the boiler:", TEXT) == []


def test_the_prompt_says_how_many() -> None:
    assert "25 questions" in prompt(25)
