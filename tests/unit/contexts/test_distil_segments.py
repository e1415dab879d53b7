from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightfill.contexts.distil_segments import MAX_CHARS, Kind, segments_of


def cut(text: str) -> list[tuple[str, str]]:
    return [(one.kind.value, text[one.start : one.end]) for one in segments_of(text)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("It works. It does!", ["It works.", "It does!"]),
        ("Cases rose by 4.5% in May. They fell.", ["Cases rose by 4.5% in May.", "They fell."]),
        ("Dr. Who came. He left.", ["Dr. Who came.", "He left."]),
        ("It is known (see Fig. 3). Yes.", ["It is known (see Fig. 3).", "Yes."]),
        ("Rates were high . [1] [2] By contrast, low.", ["Rates were high . [1] [2]", "By contrast, low."]),
        ('He said "Stop." Then he ran.', ['He said "Stop."', "Then he ran."]),
        ("One line\ngoes on here. And\nhere.", ["One line\ngoes on here.", "And\nhere."]),
        ("e.g. this one. vs. that", ["e.g. this one. vs. that"]),
        ("第一句。第二句。", ["第一句。", "第二句。"]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_prose_is_cut_into_sentences(text: str, pieces: list[str]) -> None:
    assert [piece for _, piece in cut(text)] == pieces


def test_headings_of_several_kinds_begin_sections() -> None:
    text = "# One\n\nText a.\n\nTwo\n===\n\nText b.\n\nResults and discussion\n\nText c.\n\n# file: src/a.py\nx = 1\n"
    found = segments_of(text)
    headings = [text[one.start : one.end] for one in found if one.kind is Kind.HEADING]
    assert headings == ["# One", "Two\n===", "Results and discussion", "# file: src/a.py"]
    assert [one.section for one in found] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_turns_of_a_talk_stay_whole_and_long_ones_keep_their_speaker() -> None:
    long = "PhD B: " + " ".join(f"We measured it {n} times." for n in range(30))
    lines = [f"{who}: Turn {n} . And so on ." for n, who in enumerate(["Grad A", "PhD B"] * 6)]
    text = "\n".join([*lines, long])
    found = segments_of(text)
    assert {one.kind for one in found} == {Kind.TURN}
    assert [text[one.start : one.end] for one in found[:12]] == lines
    assert found[12].lead == ""
    assert {one.lead for one in found[13:]} == {"PhD B: "}


def test_settings_with_colons_are_no_talk() -> None:
    text = "\n".join(f"key{n}: value {n}" for n in range(20))
    assert Kind.TURN not in {one.kind for one in segments_of(text)}


def test_code_is_kept_by_the_block() -> None:
    text = "Use it so:\n\n```python\nx = f(1)\n\ny = 2. Or not.\n```\n\nThat is all."
    assert cut(text) == [
        ("sentence", "Use it so:"),
        ("code", "```python\nx = f(1)\n\ny = 2. Or not.\n```"),
        ("sentence", "That is all."),
    ]


def test_rows_of_a_table_are_cut_one_by_one() -> None:
    assert cut("| a | b |\n|---|---|\n| 1 | 2 |") == [("row", "| a | b |"), ("row", "|---|---|"), ("row", "| 1 | 2 |")]


@given(st.text(st.sampled_from("ab.!?: \n\t|#=-`[](){}1é。A"), max_size=2000))
@settings(deadline=None, max_examples=150)
def test_segments_cover_all_but_blanks_in_order_and_are_bounded(text: str) -> None:
    end = 0
    for one in segments_of(text):
        assert one.start >= end
        assert not text[end : one.start].strip()
        assert one.end > one.start
        assert text[one.start : one.end].strip()
        assert one.kind is Kind.HEADING or one.end - one.start <= MAX_CHARS
        end = one.end
    assert not text[end:].strip()


def test_a_megabyte_without_a_blank_is_cut_in_a_moment() -> None:
    assert len(segments_of("x" * 1_000_000)) == -(-1_000_000 // MAX_CHARS)
