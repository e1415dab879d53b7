from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.embedder import WordEmbedder
from nightfill.contexts import distil
from nightfill.contexts.distil import distilled, rendered
from nightfill.contexts.distil_score import needs_vectors
from nightfill.contexts.distil_segments import segments_of

if TYPE_CHECKING:
    import pytest

FILLER = "Some other words stand here and there in a line of text, and nothing comes of them at all."


def short(text: str, ratio: float) -> str:
    segments = segments_of(text)
    vectors = WordEmbedder().embed([text[one.start : one.end] for one in segments])
    return distilled(text, segments, [vectors], ratio=ratio)


@given(st.lists(st.text(st.sampled_from("abcdé .?:\n#1A"), min_size=1, max_size=80), max_size=60), st.floats(2, 10))
@settings(deadline=None, max_examples=60)
def test_what_is_kept_is_of_the_text_in_its_order_and_within_the_budget(parts: list[str], ratio: float) -> None:
    text = "\n\n".join(parts)
    found = short(text, ratio)
    assert len(found.encode()) <= len(text.encode()) / ratio
    at = 0
    for piece in found.split("\n"):
        for word in piece.split():
            at = text.find(word, at)
            assert at >= 0
    assert found == short(text, ratio), "the same again"


def test_facts_are_kept_before_filler() -> None:
    fact = "The vaccine was found to reduce mortality by 43% in 1,200 patients because it increased antibodies."
    sentences = [FILLER] * 20
    sentences[10] = fact
    assert fact in short(" ".join(sentences), 8)


def test_a_heading_comes_with_its_section_and_is_paid_for() -> None:
    text = "".join(
        f"# Section {n}\n\nThe value of {n} was found to be {n * 17} metres. {FILLER}\n\n" for n in range(20)
    )
    found = short(text, 4)
    assert len(found.encode()) <= len(text) / 4
    lines = found.split("\n")
    for place, line in enumerate(lines):
        if "was found to be" in line:
            number = line.split("value of ")[1].split()[0]
            assert f"# Section {number}" in "\n".join(lines[:place])


def test_every_long_section_has_its_say() -> None:
    strong = " ".join(f"Result {n} was found to be {n} percent because of {n} causes." for n in range(60))
    weak = " ".join(f"{FILLER} Word{n}." for n in range(60))
    assert "other words" in short(f"# Strong\n\n{strong}\n\n# Weak\n\n{weak}", 4)


def test_what_says_the_same_again_makes_room_for_something_else() -> None:
    said = "The pump was found to lift 40 litres because its valve is open."
    other = "The crane was found to carry 30 tonnes because its rope is thick."
    found = short(" ".join([said] * 12 + [other] * 2 + [FILLER] * 6), 8)
    assert said in found
    assert other in found


def test_a_definition_is_kept_before_other_code() -> None:
    blocks = [f"x{n} = {n}\ny{n} = x{n} + {n}" for n in range(40)]
    blocks[20] = "def lift(pump: Pump) -> int:\n    return pump.litres"
    assert "def lift" in short("\n\n".join(blocks), 4)


def test_a_turn_that_was_cut_is_told_by_its_speaker() -> None:
    turns = [f"{who}: Okay ." for who in ("Ann", "Bob") * 10]
    turns[5] = "Bob: " + " ".join(
        f"The remote control number {n} should have a rubber case and a battery." for n in range(12)
    )
    text = "\n".join(turns)
    segments = segments_of(text)
    middle = next(place for place, one in enumerate(segments) if one.lead)
    assert rendered(text, segments, {0, middle + 2}).split("\n")[1].startswith("Bob: The remote control number")
    assert "Bob: " not in rendered(text, segments, {0, middle - 1, middle}).split("\n", 2)[1][5:]


def test_transcripts_need_no_vectors_and_prose_does() -> None:
    talk = "\n".join(f"{who}: Turn ." for who in ("Ann", "Bob") * 10)
    assert not needs_vectors(segments_of(talk))
    assert needs_vectors(segments_of("One. Two."))
    assert distilled(talk, segments_of(talk), [], ratio=4)


def test_a_talk_keeps_what_was_talked_about() -> None:
    turns = [f"{who}: Yeah okay right ." for who in ("Ann", "Bob") * 40]
    for n in range(20, 40, 2):
        turns[n] = f"Ann: I think the remote control should have rubber buttons, version {n} ."
    found = short("\n".join(turns), 6)
    assert "rubber buttons" in found


def test_a_text_beyond_the_bound_is_distilled_stretch_by_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "MAX_SEGMENTS", 20)
    text = " ".join(f"Sentence {n} was found to have {n} words." for n in range(100))
    found = short(text, 4)
    assert len(found) <= len(text) / 4
    numbers = [int(one.split()[1]) for one in found.replace("\n", " ").split(". ")]
    assert numbers == sorted(numbers)
    assert [any(low <= n < low + 20 for n in numbers) for low in range(0, 100, 20)] == [True] * 5


def test_nothing_comes_of_nothing() -> None:
    assert distilled("", [], [], ratio=4) == ""
    assert distilled("One. Two.", segments_of("One. Two."), [np.zeros((2, 3), np.float32)], ratio=4) == ""
