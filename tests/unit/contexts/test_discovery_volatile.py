from __future__ import annotations

import random
import uuid
from typing import TYPE_CHECKING

import pytest

from nightfill.contexts import Form, Messages, Text
from nightfill.contexts.context import Message
from nightfill.contexts.discovery_prompt import Piece, Prompt
from nightfill.contexts.discovery_volatile import LONGEST, VolatileSketch, differences, kinds_at, varies

if TYPE_CHECKING:
    from collections.abc import Iterable


def rules(seed: int, lines: int = 60) -> str:
    rng = random.Random(seed)
    return "\n".join(f"Rule {n}: item {rng.randrange(10**9)} is done before the next one." for n in range(lines))


def chat(*texts: str) -> Prompt:
    roles = ("system", "user", "assistant")
    return Prompt(
        Form.CHAT, "m", tuple(Piece(role, text, plain=True) for role, text in zip(roles, texts, strict=False))
    )


def looked(prompts: Iterable[Prompt], *, max_bytes: int = 1 << 20, least: int = 1000) -> VolatileSketch[str]:
    sketch: VolatileSketch[str] = VolatileSketch(max_bytes=max_bytes, least_chars=least)
    for number, prompt in enumerate(prompts):
        sketch.add(prompt, "about", number)
    return sketch


@pytest.mark.parametrize(
    ("first", "second", "kind", "lengths"),
    [
        ("2024-05-01", "2024-05-02", "date", (10, 10)),
        ("May 1, 2024", "June 12, 2024", "date", (11, 13)),
        ("3 Jan 2024", "14 February 2024", "date", (10, 16)),
        ("2024-05-01T10:00:00Z", "2024-05-02T11:30:12Z", "date and time", (20, 20)),
        ("10:15", "9:07 pm", "time", (5, 7)),
        ("5c25242b-216e-491e-9d8c-a7dc6d33ecdd", "aeda0dc8-f82e-4c81-a024-bff1e4fac293", "uuid", (36, 36)),
        ("1041", "98", "number", (2, 4)),
        ("req_8fa3b2c1d0", "req_0011aabbcc", "id", (14, 14)),
        ("10.0.0.7", "10.0.11.12", "address", (8, 10)),
        ("ann@example.org", "bob@example.com", "address", (15, 15)),
        ("Ann", "Robert", "text", (3, 6)),
    ],
)
def test_a_piece_that_changes_is_found_with_its_kind_and_place(
    first: str, second: str, kind: str, lengths: tuple[int, int]
) -> None:
    prompts = [chat(f"You help. Now: {piece} ok.\n{rules(1)}", f"{piece}?") for piece in (first, second)]
    (found,) = looked(prompts)
    assert found.variants == 2
    (spot,) = found.spots.values()
    assert (spot.kind, spot.message, spot.offset) == (kind, 0, 15)
    assert (spot.shortest, spot.longest) == lengths
    assert spot.examples == [first, second]
    assert found.shared >= len(rules(1))


def test_several_pieces_are_told_apart_also_when_they_are_close() -> None:
    prompts = []
    for day in (1, 2, 3):
        opening = f"On 2024-05-{day:02} at 1{day}:00 for {uuid.uuid5(uuid.NAMESPACE_DNS, str(day))}:"
        prompts.append(chat(f"{opening}\n{rules(1)}\nUser: {'ab' * day}\n{rules(2)}"))
    (found,) = looked(prompts)
    spots = sorted(found.spots.values(), key=lambda spot: spot.offset)
    assert [spot.kind for spot in spots] == ["date", "time", "uuid", "text"]
    assert found.variants == 3


def test_a_place_in_a_later_message_is_named_by_it() -> None:
    (found,) = looked([chat("Be kind.", f"Ticket {number}\n{rules(3)}") for number in (17, 18)])
    (spot,) = found.spots.values()
    assert (spot.message, spot.offset, spot.kind) == (1, 7, "number")


@pytest.mark.parametrize(
    "prompts",
    [
        [chat(rules(1), "a"), chat(rules(2), "a")],  # other texts
        [chat(rules(1)[:900], "a"), chat("x " + rules(1)[:900], "a")],  # too little in common
        [chat("a" * (LONGEST + 50) + rules(1), "x"), chat("b" * (LONGEST + 50) + rules(1), "x")],  # not short
    ],
    ids=["other texts", "too little in common", "a long piece"],
)
def test_prompts_that_differ_otherwise_are_no_variants(prompts: list[Prompt]) -> None:
    assert list(looked(prompts)) == []


def test_the_roots_of_all_variants_are_spoiled_and_no_others() -> None:
    days = [chat(f"Today is 2024-05-{day:02}.\n{rules(1)}", "x") for day in range(1, 4)]
    sketch = looked([*days, chat(rules(9), "x")])
    assert [sketch.spoils(root) for root in range(5)] == [True, True, True, False, False]


def test_texts_are_bounded_and_those_without_variants_go_first() -> None:
    size = len(rules(1)) + 5000
    days = [chat(f"Today is 2024-05-{day:02}.\n{rules(1)}", "x") for day in (1, 2)]
    others = [chat(rules(seed), "x") for seed in range(10, 30)]
    sketch = looked([*days, *others], max_bytes=3 * size)
    assert [one.variants for one in sketch] == [2]
    assert sum(len(one.text) for one in sketch._known.values()) <= 3 * size
    assert len(sketch._roots) <= 4
    assert set(sketch._by_anchor.values()) <= set(sketch._known)


def test_examples_are_few() -> None:
    (found,) = looked(chat(f"Now: {number}\n{rules(1)}", "x") for number in range(100, 120))
    (spot,) = found.spots.values()
    assert len(spot.examples) == 3


def test_differences_are_short_pieces_between_runs_that_are_alike() -> None:
    run, other = "alike " * 20, "and so is this one, to its end " * 4
    found, shared = differences(run + "XX" + other, run + "Y" + other + "tail")
    assert [(one.at, one.length, one.other_length) for one in found] == [(120, 2, 1)]
    assert shared == len(run) + len(other)
    assert differences("", "") == ([], 0)
    assert differences("same", "same") == ([], 4)


def test_a_piece_is_part_of_the_longest_thing_that_it_belongs_to() -> None:
    text = "from 2024-05-01 on"
    assert kinds_at(text, text.index("1 on"), 1) == [("date", 5, 15)]
    assert kinds_at("nothing here", 0, 7) == []


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Text(f"2024-05-01\n{rules(1)}"), Text(f"2024-05-02\n{rules(1)}"), True),
        (Text(rules(1)), Text(rules(1)), False),
        (Text(rules(1)), Text(rules(2)), False),
        (
            Messages((Message("system", "A 1"), Message("user", rules(1)))),
            Messages((Message("system", "A 2"), Message("user", rules(1)))),
            True,
        ),
    ],
)
def test_contents_vary_when_they_are_alike_but_for_short_pieces(
    one: Text | Messages, other: Text | Messages, expected: bool
) -> None:
    assert varies(one, other, least_chars=1000) is expected
