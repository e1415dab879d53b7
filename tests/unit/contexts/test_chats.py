from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nightfill.contexts import (
    DEFAULT_TENANT,
    Content,
    Context,
    ContextName,
    Fill,
    FillKey,
    FillState,
    Fingerprint,
    Form,
    Message,
    Messages,
    Signature,
    Tenant,
    Text,
    fingerprint_of,
    parse_name,
    place_chat,
)
from nightfill.contexts.chats import about, chat_name, doomed, whole
from nightfill.contexts.context import Chat, MessagesSource, Source, TextSource
from nightfill.contexts.fingerprint import fingerprints_of

SAID = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("assistant", 'fo"ur'))
NOW_S = 1e6


def context(name: str, current: str, source: Source | None = None, **more: Any) -> Context:
    given: dict[str, Any] = {"tenant": DEFAULT_TENANT, "updated_at_s": NOW_S, "distilled": None, **more}
    return Context(
        name=ContextName(name),
        source=source or TextSource(),
        forms=(Form.CHAT,),
        pinned=False,
        ttl_s=None,
        current=Fingerprint(current),
        content_bytes=1,
        created_at_s=0,
        checked_at_s=0,
        **given,
    )


def chat(current: str, *before: str, context_name: str = "", version: str = "", **more: Any) -> Context:
    source = MessagesSource(Chat(context=context_name, version=version, before=before))
    return context(f"chat-{current}", current, source, **more)


def fill(current: str, state: FillState = FillState.READY, reason: str = "") -> Fill:
    key = FillKey(
        tenant=DEFAULT_TENANT, fingerprint=Fingerprint(current), form=Form.CHAT, signature=Signature("5" * 64)
    )
    return Fill(key=key, state=state, tokens=(1,), stored_tokens=1, filled_at_s=0, fill_seconds=0, reason=reason)


def gone(contexts: list[Context], *fills: Fill, ttl_s: float = 100, max_chats: int = 99) -> list[str]:
    found = doomed(contexts, fills, now_s=NOW_S, ttl_s=ttl_s, max_chats=max_chats)
    return [one.context.current for one in found]


def test_each_mark_is_the_fingerprint_of_the_messages_up_to_there() -> None:
    for behind in (None, Fingerprint("a" * 64)):
        marks = fingerprints_of(SAID, behind=behind)
        contents = [Messages(SAID[:count], behind=behind) for count in range(1, 5)]
        assert marks == [fingerprint_of(content) for content in contents]
    assert len({*fingerprints_of(SAID), *fingerprints_of(SAID, behind=Fingerprint("a" * 64))}) == 8


def test_a_chats_name_is_a_name() -> None:
    name = chat_name(fingerprint_of(Messages(SAID)))
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "front",
    [
        Text('a long "text"\n'),
        Messages((Message("system", "be brief"), Message("user", "hm"), Message("assistant", "yes"))),
        Messages((Message("user", "hm"), Message("system", "be brief"))),
    ],
)
@pytest.mark.parametrize("own", [SAID, (Message("system", "S"), *SAID)])
def test_a_chat_behind_a_context_is_what_the_next_request_begins_with(front: Content, own: tuple[Message, ...]) -> None:
    newest = Message("user", "five")
    request = [msgspec.Raw(msgspec.json.encode(message)) for message in (*own, newest)]
    placed = [msgspec.json.decode(raw, type=Message) for raw in place_chat(front, request)]
    assert [*whole(Messages(own, behind=fingerprint_of(front)), front).messages, newest] == placed


def test_what_is_stored_of_a_chat_reads_back_and_plain_messages_are_as_before() -> None:
    behind = Messages(SAID, behind=Fingerprint("a" * 64))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(behind), type=Content) == behind
    assert msgspec.json.encode(Messages(SAID[:1])) == (
        b'{"type":"messages","messages":[{"role":"user","content":"one"}]}'
    )
    assert msgspec.json.encode(MessagesSource()) == b'{"type":"messages"}'


def test_a_chat_without_a_turn_for_too_long_goes() -> None:
    assert gone([chat("a", updated_at_s=NOW_S - 101), chat("b", updated_at_s=NOW_S - 99)]) == ["a"]


def test_a_chat_goes_with_the_version_that_it_is_about() -> None:
    notes = context("notes", "v2", distilled=Fingerprint("d2"))
    chats = [
        chat("a", context_name="notes", version="v1"),
        chat("b", context_name="notes", version="v2"),
        chat("c", context_name="notes", version="d2"),
        chat("d", context_name="other", version="v2"),
        chat("e", context_name="notes", version="v2", tenant=Tenant("theirs")),
        chat("f"),
    ]
    assert gone([notes, *chats]) == ["a", "d", "e"]


def test_a_chat_goes_when_the_kv_that_it_goes_on_from_was_wrong() -> None:
    notes = context("notes", "v")
    one = chat("a", context_name="notes", version="v")
    assert gone([notes, one], fill("v", FillState.STALE, "drifted: far off")) == ["a"]
    assert gone([notes, one], fill("v", FillState.STALE, "broken")) == []


def test_of_many_chats_those_without_a_turn_for_longest_go_tenant_by_tenant() -> None:
    ours = [chat(str(age), updated_at_s=NOW_S - age) for age in (5, 1, 3)]
    theirs = [chat("t", updated_at_s=NOW_S - 9, tenant=Tenant("theirs"))]
    assert gone([*ours, *theirs], max_chats=2) == ["5"]
    assert sorted(gone([*ours, *theirs], max_chats=1)) == ["3", "5"]


def test_the_turns_of_one_chat_count_as_one_and_go_together() -> None:
    old = [chat("a", updated_at_s=NOW_S - 9), chat("b", "a", updated_at_s=NOW_S - 8)]
    new = [chat("c", updated_at_s=NOW_S - 90), chat("d", "c", updated_at_s=NOW_S - 1)]
    fills = [fill(one) for one in "abcd"]
    assert gone([*old, *new], *fills, max_chats=2) == []
    assert gone([*old, *new], *fills, max_chats=1) == ["a", "b"]


@pytest.mark.parametrize(
    ("filled", "expected"),
    [
        ("", "cba"),  # nothing is of use before it is filled
        ("a", "cb"),
        ("ab", "c"),
        ("abc", "a"),
        ("abcd", "ba"),  # two that are filled stay: a slot may have been given the last but one
        ("ad", "cb"),
        ("bd", "ca"),
    ],
)
def test_turns_go_when_later_ones_are_filled(filled: str, expected: str) -> None:
    chats = [chat("a"), chat("b", "a"), chat("c", "b", "a"), chat("d", "c", "b", "a")]
    assert sorted(gone(chats, *map(fill, filled))) == sorted(expected)


def test_chats_are_found_by_their_context() -> None:
    notes = context("notes", "v")
    one = chat("a", context_name="notes")
    assert about([notes, one, chat("b", context_name="other"), chat("c")], ContextName("notes")) == [one]
    assert notes.chat is None
    assert one.chat is not None
