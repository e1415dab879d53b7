from __future__ import annotations

import pytest

from nightfill.contexts.distil_model import prompt, sections_of, taken
from nightfill.contexts.distil_segments import segments_of

PIECE = "The pump lifts forty litres because its valve is open. " * 10
SHORT = "The pump lifts forty litres; its valve is open, and nothing else about the pump matters here."


@pytest.mark.parametrize(
    "reply",
    [
        SHORT,
        f"  {SHORT}\n",
        f"```\n{SHORT}\n```",
        f"Here is the shortened text:\n\n{SHORT}",
        f"Sure! Here you go.\n{SHORT}",
        f"<think>What matters? The pump.</think>\n{SHORT}",
        f"-----\n{SHORT}\n-----",
    ],
)
def test_the_text_is_found_in_what_a_model_says_around_it(reply: str) -> None:
    assert taken(reply, PIECE, target_bytes=100) == SHORT


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "empty"),
        ("  \n", "blank"),
        ("<think>The pump lifts forty litres and then", "nothing but thoughts"),
        ("The pump.", "much too short"),
        (PIECE, "not shorter"),
        ("The pump lifts forty litres and its valve is open. " * 4, "repeats itself and is too long"),
        ("pump valve pump valve pump valve pump valve pump valve pump valve pump valve", "babble"),
        ("Cats sleep during winter nights, dreaming about mountains, rivers, oceans, castles.", "of something else"),
        ("!!! ??? ---", "no words"),
    ],
)
def test_what_is_no_shortened_text_is_refused(reply: str, why: str) -> None:
    assert taken(reply, PIECE, target_bytes=100) is None, why


def test_a_list_keeps_its_first_mark() -> None:
    reply = "- The pump lifts forty litres.\n- Its valve is open because somebody opened the valve of the pump."
    assert taken(reply, PIECE, target_bytes=100) == reply


def test_sections_cover_the_text_and_are_of_about_one_length() -> None:
    text = "".join(f"# Part {n}\n\n" + "The pump lifts forty litres. " * 20 + "\n\n" for n in range(20))
    sections = sections_of(text, segments_of(text), ratio=5, most_tokens=400)
    assert "".join(text[one.start : one.end] for one in sections) == text
    sizes = [one.end - one.start for one in sections]
    assert max(sizes) <= 1600
    assert min(sizes) > max(sizes) / 3
    assert all(text[one.start :].startswith("# Part") for one in sections)
    assert all(abs(one.target_bytes - (one.end - one.start) / 5) < 200 for one in sections)


def test_a_text_without_words_has_no_sections() -> None:
    assert sections_of(" \n", [], ratio=4, most_tokens=100) == []


def test_a_model_is_told_which_part_it_has_and_how_long_to_write() -> None:
    said = prompt("Words.", place=2, of=7, words=40)
    assert "part 2 of 7" in said
    assert "at most 40 words" in said
    assert "\nWords.\n" in said
