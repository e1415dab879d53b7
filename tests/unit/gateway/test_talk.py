from __future__ import annotations

import msgspec
import pytest

from nightfill.config import HistorySettings
from nightfill.contexts import ContextName, Fingerprint, Message, Messages, fingerprint_of
from nightfill.contexts.context import ContextOptions
from nightfill.gateway.ask import decode_ask
from nightfill.gateway.talk import Talk, is_wanted, talk_of

SAID = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


def talk(messages: object = SAID, *, placed: bool = True, more: dict[str, object] | None = None) -> Talk | None:
    members = {"messages": messages, **(more or {})}
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in members.items()}
    version = Fingerprint("a" * 64)
    return talk_of(raw, context=ContextName("notes"), version=version, user="u", placed=placed)


def test_a_chat_is_known_by_what_was_said_after_each_reply() -> None:
    found = talk([*SAID, {"role": "assistant", "content": "four"}, {"role": "user", "content": "five"}])
    assert found is not None
    assert found.earlier() == [5, 3]
    assert found.marks[2] == fingerprint_of(Messages(found.messages[:3], behind=Fingerprint("a" * 64)))
    assert found.messages[0] == Message("system", "S")


def test_a_text_that_the_client_carries_itself_is_part_of_what_was_said() -> None:
    found = talk(placed=False)
    assert found is not None
    assert (found.behind, found.version) == (None, "a" * 64)
    assert found.marks[-1] == fingerprint_of(Messages(found.messages))


def test_a_reply_that_is_to_be_gone_on_with_is_no_earlier_one() -> None:
    found = talk(SAID[:3])
    assert found is not None
    assert found.earlier() == []


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "assistant", "content": "x", "tool_calls": [{}]},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
        {"role": "user", "content": "x", "name": "n"},
        {"role": "function", "content": "x"},
    ],
)
def test_what_is_more_than_plain_messages_ends_it(message: object) -> None:
    assert talk([*SAID, message]) is None


@pytest.mark.parametrize("name", ["tools", "documents", "chat_template_kwargs", "reasoning_effort", "functions"])
def test_what_may_become_part_of_the_prompt_ends_it(name: str) -> None:
    assert talk(more={name: ["x"]}) is None
    assert talk(more={name: None}) is not None


def test_several_replies_have_no_next_turn() -> None:
    assert talk(more={"n": 2}) is None
    assert talk(more={"n": 1}) is not None


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        (HistorySettings(), ContextOptions(), False),
        (HistorySettings(), ContextOptions(history=True), True),
        (HistorySettings(enabled=True), ContextOptions(), True),
        (HistorySettings(enabled=True), ContextOptions(history=False), False),
        (HistorySettings(enabled=True), None, False),
        (HistorySettings(without_context=True), None, True),
        (HistorySettings(without_context=True), ContextOptions(), False),
    ],
)
def test_a_context_decides_and_the_settings_where_it_does_not(
    settings: HistorySettings, options: ContextOptions | None, expected: bool
) -> None:
    ask = decode_ask("/v1/chat/completions", msgspec.json.encode({"messages": SAID}), {})
    assert is_wanted(settings, ask, options) is expected


@pytest.mark.parametrize(
    ("path", "more", "headers"),
    [
        ("/v1/chat/completions", {"nightfill": {"skip": ["fill"]}}, {}),
        ("/v1/chat/completions", {"cache_prompt": False}, {}),
        ("/v1/chat/completions", {"cache_salt": "mine"}, {}),
        ("/v1/chat/completions", {}, {b"cache-control": b"no-store"}),
        ("/v1/completions", {"prompt": "x"}, {}),
    ],
)
def test_who_wants_nothing_kept_is_left_alone(path: str, more: dict[str, object], headers: dict[bytes, bytes]) -> None:
    ask = decode_ask(path, msgspec.json.encode({"messages": SAID, **more}), headers)
    assert not is_wanted(HistorySettings(enabled=True), ask, ContextOptions(history=True))
