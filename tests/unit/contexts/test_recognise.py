from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.contexts.context import Content, ContextName, Fingerprint, Form, Message, Messages, Text
from nightfill.contexts.placement import place_chat, place_completion
from nightfill.contexts.recognise import Entry, Index

LONG = "x" * 200


def entry(name: str, content: Content, *forms: Form) -> Entry:
    return Entry(
        name=ContextName(name),
        fingerprint=Fingerprint(name),
        content=content,
        forms=forms or (Form.CHAT, Form.COMPLETION),
    )


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def named(found: Entry | None) -> str | None:
    return found.name if found else None


def ask(index: Index, *messages: tuple[str, Any]) -> str | None:
    return named(index.chat([raw({"role": role, "content": content}) for role, content in messages]))


def test_the_longest_context_wins() -> None:
    index = Index([entry("short", Text(LONG)), entry("long", Text(LONG + "yz")), entry("tiny", Text("xx"))])
    assert ask(index, ("system", LONG + "yz and more"), ("user", "q")) == "long"
    assert ask(index, ("system", LONG + "y"), ("user", "q")) == "short"
    assert ask(index, ("system", "xxz"), ("user", "q")) == "tiny"
    assert ask(index, ("system", "xz"), ("user", "q")) is None
    assert named(index.completion(raw(LONG + "yz?"))) == "long"
    assert named(index.completion(raw(LONG))) == "short"
    assert named(index.completion(raw("xxz"))) == "tiny"


def test_equal_contents_are_told_apart_by_name() -> None:
    assert ask(Index([entry("b", Text(LONG)), entry("a", Text(LONG))]), ("system", LONG)) == "a"


def test_a_text_is_recognised_only_in_a_system_message() -> None:
    index = Index([entry("a", Text(LONG))])
    assert ask(index, ("user", LONG)) is None
    assert ask(index, ("developer", LONG)) is None


def test_a_text_part_in_front_is_recognised() -> None:
    index = Index([entry("a", Text(LONG))])
    assert ask(index, ("system", [{"type": "text", "text": LONG + "\n\n"}, {"type": "text", "text": "b"}])) == "a"
    assert ask(index, ("system", [{"type": "image_url", "text": LONG}])) is None


def test_messages_are_recognised_when_roles_and_texts_are_equal_and_one_follows() -> None:
    history = Messages((Message("user", "a"), Message("assistant", "b")))
    index = Index([entry("chat", history), entry("shorter", Messages(history.messages[:1]))])
    assert ask(index, ("user", "a"), ("assistant", "b"), ("user", "q")) == "chat"
    assert ask(index, ("user", "a"), ("assistant", "b")) == "shorter"
    assert ask(index, ("user", "a"), ("user", "b"), ("user", "q")) == "shorter"
    assert ask(index, ("user", "ab"), ("assistant", "b"), ("user", "q")) is None
    assert ask(index, ("system", "a"), ("user", "q")) is None


def test_only_the_forms_that_a_context_is_filled_in_are_recognised() -> None:
    index = Index([entry("chat", Text(LONG), Form.CHAT), entry("plain", Text(LONG + "y"), Form.COMPLETION)])
    assert ask(index, ("system", LONG + "y")) == "chat"
    assert named(index.completion(raw(LONG))) is None
    assert named(index.completion(raw(LONG + "y"))) == "plain"


@pytest.mark.parametrize("message", [1, {}, {"role": 1}, {"role": "system"}, {"role": "system", "content": [1]}])
def test_malformed_messages_match_nothing(message: Any) -> None:
    assert Index([entry("a", Text(LONG))]).chat([raw(message)]) is None


@pytest.mark.parametrize("prompt", [1, [1], ["a"], None])
def test_prompts_that_are_no_string_match_nothing(prompt: Any) -> None:
    assert Index([entry("a", Text("a"))]).completion(raw(prompt)) is None


def test_an_empty_index_matches_nothing() -> None:
    assert Index().chat([raw({"role": "system", "content": "a"})]) is None
    assert Index().chat([]) is None


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(texts=st.lists(TEXTS, min_size=1, max_size=5, unique=True), pick=st.integers(0, 4), rest=TEXTS)
def test_what_placement_puts_in_front_is_recognised(texts: list[str], pick: int, rest: str) -> None:
    index = Index([entry(str(number), Text(text)) for number, text in enumerate(texts)])
    text = texts[pick % len(texts)]
    for prompt in (rest, ""):
        sent = text + prompt
        best = max((t for t in texts if sent.startswith(t)), key=len)
        assert named(index.completion(place_completion(Text(text), raw(prompt)))) == str(texts.index(best))
    found = index.chat(place_chat(Text(text), [raw({"role": "user", "content": rest})]))
    assert named(found) == str(texts.index(text))
