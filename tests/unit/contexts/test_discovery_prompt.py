from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.contexts import Form, Messages, Text
from nightfill.contexts.context import Message
from nightfill.contexts.discovery_prompt import (
    GOES_ON,
    Piece,
    Place,
    Prompt,
    Shared,
    chain,
    common_length,
    prompt_of,
    text_bytes,
)

SECRET = bytes(32)


def asked(**members: Any) -> Prompt | None:
    raw = msgspec.json.decode(msgspec.json.encode(members), type=dict[str, msgspec.Raw])
    return prompt_of(raw)


def chat(*messages: tuple[str, str], elsewhere: bytes = b"", model: str = "m") -> Prompt:
    return Prompt(Form.CHAT, model, tuple(Piece(role, text, plain=True) for role, text in messages), elsewhere)


def completion(text: str) -> Prompt:
    return Prompt(Form.COMPLETION, "m", (Piece("", text, plain=True),))


def keys(prompt: Prompt, *, secret: bytes = SECRET, least: int = 4, block: int = 4) -> list[object]:
    return [step.key for step in chain(prompt, secret, least_bytes=least, block_bytes=block)[0]]


# --- requests ---


def test_a_chat_is_its_messages_and_what_else_its_template_renders() -> None:
    found = asked(
        model="m",
        messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi", "name": "Ann"}],
        tools=[{"type": "function"}],
        temperature=1,
    )
    assert found is not None
    assert found.pieces[0] == Piece("system", "Be kind.", plain=True)
    assert (found.pieces[1].text, found.pieces[1].plain) == ("Hi", False)
    assert b"function" in found.elsewhere


def test_parts_of_a_message_are_joined_and_pictures_count_by_what_they_are() -> None:
    def with_picture(url: str) -> Prompt | None:
        picture = {"type": "image_url", "image_url": {"url": url}}
        return asked(messages=[{"role": "user", "content": [{"type": "text", "text": "Look"}, picture]}])

    one, other = with_picture("data:a"), with_picture("data:b")
    assert one is not None
    assert one.pieces[0].text.startswith("Look")
    assert one != other


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"messages": []},
        {"messages": 3},
        {"messages": [3]},
        {"messages": [{"role": 3, "content": "x"}]},
        {"prompt": ""},
        {"prompt": [1, 2]},
        {"prompt": ["a", "b"]},
        {"prompt": {"a": 1}},
        {"prompt": "x", "model": 3},
    ],
)
def test_what_has_no_one_text_is_no_prompt(members: dict[str, Any]) -> None:
    assert asked(**members) is None


@pytest.mark.parametrize("prompt", ["abc", ["abc"]])
def test_a_completion_is_its_prompt(prompt: object) -> None:
    found = asked(prompt=prompt, model=None)
    assert found == Prompt(Form.COMPLETION, "", (Piece("", "abc", plain=True),))


def test_an_empty_list_of_tools_is_none() -> None:
    found = asked(messages=[{"role": "user", "content": "x"}], tools=[], functions=None)
    assert found is not None
    assert found.elsewhere == b""


# --- chains ---


def test_steps_begin_at_the_least_length_and_come_at_blocks_and_ends_of_messages() -> None:
    steps, places = chain(chat(("system", "abcdef"), ("user", "gh")), SECRET, least_bytes=3, block_bytes=2)
    assert [step.size for step in steps] == [3, 5, 6, 7, 8]
    assert places == [Place(0, 3), Place(0, 5), Place(1, 0), Place(1, 1), Place(2, 0)]


def test_a_prompt_that_is_too_short_has_no_steps() -> None:
    assert chain(completion("abc"), SECRET, least_bytes=4, block_bytes=4) == ([], [])


@given(st.text("ab\xe9\u20ac", max_size=30), st.text("ab", max_size=30), st.integers(1, 9), st.integers(1, 9))
def test_two_prompts_have_those_keys_in_common_up_to_which_they_are_alike(
    one: str, other: str, least: int, block: int
) -> None:
    first, second = completion(one), completion(other)
    alike = 0
    for mine, theirs in zip(one.encode(), other.encode(), strict=False):
        if mine != theirs:
            break
        alike += 1
    mine_steps = chain(first, SECRET, least_bytes=least, block_bytes=block)[0]
    their_keys = set(keys(second, least=least, block=block))
    assert [step.size for step in mine_steps if step.key in their_keys] == list(range(least, alike + 1, block))


@pytest.mark.parametrize(
    "other",
    [
        chat(("user", "abcdefgh")),
        chat(("system", "abcd"), ("system", "efgh")),
        chat(("system", "abcdefgh"), model="other"),
        chat(("system", "abcdefgh"), elsewhere=b"tools"),
        completion("abcdefgh"),
    ],
)
def test_roles_seams_models_tools_and_forms_make_other_keys(other: Prompt) -> None:
    mine, theirs = keys(chat(("system", "abcdefgh"))), keys(other)
    assert theirs[-1] not in mine
    assert len(set(mine) & set(theirs)) == (1 if len(other.pieces) == 2 else 0)


def test_what_a_message_says_cannot_look_like_the_end_of_it() -> None:
    two, one = chat(("system", "ab\xfd\xff"), ("user", "cd")), chat(("system", "ab\xfd\xffuser\xfecd"))
    assert keys(two)[-1] not in keys(one)
    assert keys(one)[-1] not in keys(two)


def test_other_secrets_have_no_key_in_common() -> None:
    assert set(keys(completion("abcdefgh"))).isdisjoint(keys(completion("abcdefgh"), secret=bytes([1] * 32)))


def test_sizes_are_bytes_of_utf8() -> None:
    assert text_bytes(chat(("system", "\u20ac"), ("user", "a"))) == 4


# --- what prompts share ---


def shared(*prompts: Prompt, least: int = 1) -> object:
    first, *others = prompts
    found = Shared(first)
    for other in others:
        found.meet(other)
    return found.content(least_bytes=least)


def test_a_system_message_that_is_followed_by_other_questions_is_a_text() -> None:
    assert shared(chat(("system", "Rules."), ("user", "a")), chat(("system", "Rules."), ("user", "b"))) == Text(
        "Rules."
    )


def test_a_system_message_that_goes_on_otherwise_is_cut_after_a_line_else_a_word() -> None:
    one, other = "a first line\nlast A", "a first line\nlast B"
    assert shared(chat(("system", one), ("user", "x")), chat(("system", other), ("user", "x"))) == Text(
        "a first line\n"
    )
    assert shared(completion("one two thA"), completion("one two thB")) == Text("one two ")
    assert shared(completion("aaaaA"), completion("aaaaB")) == Text("aaaa")


def test_a_chat_is_cut_after_a_whole_message_that_others_follow() -> None:
    start = (("system", "Rules."), ("user", "Hi"), ("assistant", "Hello"))
    found = shared(chat(*start, ("user", "a")), chat(*start, ("user", "b"), ("assistant", "c")))
    assert found == Messages(tuple(Message(role, text) for role, text in start))  # type: ignore[arg-type]
    longer = (*start, ("user", "Go on"))
    same = shared(chat(*longer), chat(*longer))
    assert isinstance(same, Messages)
    assert len(same.messages) == 3, "a context is followed by a message at least"


def test_a_chat_that_goes_on_is_not_for_others() -> None:
    turns = (("system", "Rules."), ("user", "Hi"), ("assistant", "Hello"), ("user", "More"), ("assistant", "Yes"))
    assert shared(chat(*turns[:2]), chat(*turns[:4]), chat(*turns, ("user", "x"))) == GOES_ON
    assert shared(chat(*turns[:4]), chat(*turns, ("user", "x"))) == GOES_ON


def test_a_completion_that_is_the_same_each_time_is_a_text_as_it_is() -> None:
    assert shared(completion("one two"), completion("one two")) == Text("one two")


@pytest.mark.parametrize(
    ("prompts", "why"),
    [
        ((chat(("user", "long text A")), chat(("user", "long text B"))), "too short"),
        ((completion("aXlong"), completion("aYlong")), "too short"),
        ((chat(("system", "Rules, long"), ("user", "a"), elsewhere=b"x"),), "tools"),
        (
            (
                Prompt(
                    Form.CHAT, "m", (Piece("system", "long one", plain=False), Piece("user", "long", plain=True)), b""
                ),
            ),
            "more than a role",
        ),
        ((chat(("tool", "long one"), ("user", "x")),), "more than a role"),
    ],
)
def test_what_cannot_be_a_context_says_why(prompts: tuple[Prompt, ...], why: str) -> None:
    found = shared(*prompts, least=4)
    assert isinstance(found, str)
    assert why in found


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (Place(0, 8), Text("one two ")),
        (Place(0, 9), Text("one two ")),
        (Place(1, 0), Text("one two thr")),
        (Place(2, 0), Text("one two thr")),
    ],
)
def test_a_prompt_up_to_a_place_is_what_comes_before_it(place: Place, expected: Text) -> None:
    assert Shared(chat(("system", "one two thr"), ("user", "four")), place).content(least_bytes=1) == expected


@given(st.text("ab", max_size=400), st.text("ab", max_size=400), st.integers(0, 300))
def test_the_common_length_is_that_of_a_plain_comparison(one: str, other: str, alike: int) -> None:
    one, other = "x" * alike + one, "x" * alike + other
    plain = 0
    while plain < min(len(one), len(other)) and one[plain] == other[plain]:
        plain += 1
    assert common_length(one, other) == plain
