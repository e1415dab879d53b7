from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.contexts.context import Content, Message, Messages, Text
from nightfill.contexts.placement import Front, place_chat, place_completion
from nightfill.errors import BadRequest

CONTEXT = Text('def f():\n\treturn "ü"\r\n')
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def raws(*messages: Any) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode(message)) for message in messages]


def placed(content: Content, *messages: Any) -> list[Any]:
    return [msgspec.json.decode(raw) for raw in place_chat(content, raws(*messages))]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_text_becomes_the_leading_system_message() -> None:
    assert placed(CONTEXT, user("hi")) == [{"role": "system", "content": CONTEXT.text}, user("hi")]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_requests_own_system_text_follows_the_context(role: str) -> None:
    out = placed(CONTEXT, {"role": role, "content": "Be brief.", "name": "boss"}, user("hi"))
    assert out == [{"role": "system", "content": CONTEXT.text + "\n\nBe brief.", "name": "boss"}, user("hi")]


def test_content_parts_get_a_text_part_in_front() -> None:
    parts = [{"type": "text", "text": "Be brief."}]
    out = placed(CONTEXT, {"role": "system", "content": parts})
    assert out[0]["content"] == [{"type": "text", "text": CONTEXT.text + "\n\n"}, *parts]


@pytest.mark.parametrize("content", [None, "", []])
def test_an_empty_system_message_adds_nothing(content: Any) -> None:
    (message,) = placed(CONTEXT, {"role": "system", "content": content})
    assert message["content"] in (CONTEXT.text, [{"type": "text", "text": CONTEXT.text}])


@given(text=TEXTS.filter(bool), own=TEXTS, question=TEXTS, extra=st.dictionaries(st.text("abc", min_size=1), TEXTS))
def test_the_text_is_in_front_byte_for_byte_and_other_members_stay(
    text: str, own: str, question: str, extra: dict[str, str]
) -> None:
    system, ask = {**extra, "role": "system", "content": own}, {**extra, "role": "user", "content": question}
    for request in ([system, ask], [ask]):
        before = raws(*request)
        after = place_chat(Text(text), before)
        first = msgspec.json.decode(after[0])
        assert first["content"].encode().startswith(text.encode())
        assert bytes(after[-1]) == bytes(before[-1])
        if len(request) == 2:
            assert {k: v for k, v in first.items() if k != "content"} == {
                k: v for k, v in system.items() if k != "content"
            }


HISTORY = Messages((Message("system", "You know the shop."), Message("user", "a"), Message("assistant", "b")))
RULES = Messages((Message("user", "a"), Message("system", "rules")))


def test_messages_come_first_unchanged() -> None:
    after = place_chat(HISTORY, raws(user("q")))
    assert [bytes(m) for m in after[:3]] == [msgspec.json.encode(m) for m in HISTORY.messages]
    assert msgspec.json.decode(after[3]) == user("q")


def test_a_system_message_behind_messages_moves_into_the_first_user_message() -> None:
    out = placed(
        HISTORY, {"role": "system", "content": "Be brief."}, {"role": "developer", "content": "No."}, user("q")
    )
    assert out[3:] == [user("Be brief.\n\nNo.\n\nq")]


def test_a_system_message_behind_messages_becomes_a_user_message_when_none_follows() -> None:
    assert placed(HISTORY, {"role": "system", "content": "Be brief."})[3:] == [user("Be brief.")]


def test_a_system_message_joins_a_context_that_ends_with_one() -> None:
    out = placed(RULES, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, user("q"))
    assert out == [user("a"), {"role": "system", "content": "rules\n\nBe brief."}, user("q")]


FOLLOWING = st.lists(
    st.tuples(st.sampled_from(["system", "developer", "user", "assistant"]), st.text("xy\n<|>", max_size=4)), min_size=1
)


@given(content=st.sampled_from([CONTEXT, HISTORY, RULES]), requests=st.lists(FOLLOWING, min_size=2, max_size=4))
def test_the_front_is_the_same_whatever_follows(content: Content, requests: list[list[tuple[str, str]]]) -> None:
    def render(messages: list[Any]) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)

    rendered = [render(placed(content, *({"role": r, "content": c} for r, c in request))) for request in requests]
    whole = Messages((Message("system", content.text),)) if isinstance(content, Text) else content
    front = "".join(f"<{m.role}>{m.content}" for m in whole.messages)
    assert all(text.startswith(front) for text in rendered)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (1, "messages[0]"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": 7}, "messages[0].role"),
        ({"role": "system", "content": 5}, "messages[0].content"),
    ],
)
@pytest.mark.parametrize("content", [CONTEXT, HISTORY])
def test_malformed_messages_are_refused_by_place(message: Any, param: str, content: Content) -> None:
    with pytest.raises(BadRequest) as caught:
        place_chat(content, raws(message))
    assert caught.value.param == param


def test_no_messages_at_all_are_refused() -> None:
    with pytest.raises(BadRequest):
        place_chat(CONTEXT, [])


@given(text=TEXTS, prompt=TEXTS)
def test_a_completions_prompt_follows_the_text_directly(text: str, prompt: str) -> None:
    assert msgspec.json.decode(place_completion(Text(text), raws(prompt)[0])) == text + prompt


def test_each_of_several_prompts_gets_the_text() -> None:
    assert msgspec.json.decode(place_completion(Text("ab "), raws(["x", "y"])[0])) == ["ab x", "ab y"]


@pytest.mark.parametrize("prompt", [[1, 2], [[1]], [], 5, None, ["a", 1]])
def test_prompts_that_are_no_text_are_refused(prompt: Any) -> None:
    with pytest.raises(BadRequest, match="prompt must be"):
        place_completion(CONTEXT, raws(prompt)[0])


def test_messages_do_not_fit_a_completion() -> None:
    with pytest.raises(BadRequest, match="chat/completions"):
        place_completion(HISTORY, raws("x")[0])


def test_a_front_serves_many_requests_without_changing() -> None:
    front = Front(HISTORY)
    assert front.chat(raws(user("q"))) == front.chat(raws(user("q")))
