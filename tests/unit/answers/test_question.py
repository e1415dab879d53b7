from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fakes.answers import DESCRIPTION
from nightfill.answers.question import CHAT, COMPLETION, MAX_QUESTION_BYTES, Bar, Ground, Question, Questions
from nightfill.contexts.context import ContextName, Fingerprint, Signature, Tenant

QUESTIONS = Questions(secret=b"s" * 32, max_temperature=0.3)
GROUND = Ground(tenant=Tenant("a"), context=ContextName("repo"), fingerprint=Fingerprint("1" * 64))
SAID: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the harbour?"}],
    "temperature": 0,
}


def members(said: dict[str, Any] | str) -> dict[str, msgspec.Raw]:
    text = said if isinstance(said, str) else json.dumps(said)
    return msgspec.json.decode(text.encode(), type=dict[str, msgspec.Raw])


def of(said: dict[str, Any] | str = SAID, ground: Ground = GROUND, path: str = CHAT, **engine: Any) -> Question:
    found = QUESTIONS.of(ground, path=path, members=members(said), engine=replace(DESCRIPTION, **engine))
    assert isinstance(found, Question), found
    return found


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]


def test_the_order_of_members_and_blanks_do_not_count() -> None:
    spaced = """{"temperature" : 0, "messages" : [
        {"content": "Be brief.", "role": "system"}, {"content": "Where is the harb\\u006fur?", "role": "user"}]}"""
    assert of(spaced) == of()


@pytest.mark.parametrize(
    "more",
    [
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "ann"},
        {"metadata": {"a": "b"}},
        {"n": 1, "stop": None, "logprobs": False, "tools": []},
        {"cache": {"ttl": 5}, "prompt_cache_key": "x"},
    ],
)
def test_what_shapes_only_the_transport_does_not_count(more: dict[str, Any]) -> None:
    assert of({**SAID, **more}) == of()


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.1},
        {"temperature": 0.0},
        {"seed": 1},
        {"max_tokens": 5},
        {"top_p": 0.5},
        {"stop": ["\n"]},
        {"presence_penalty": 0.1},
        {"messages": user("Where is the harbour")},
        {"messages": SAID["messages"][1:]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"n": 2},
        {"logprobs": True},
        {"repetition_penalty": 1.1},
        {"somebody_elses": [1, {"a": None}]},
        {"lora": "x"},
    ],
)
def test_each_member_that_shapes_the_reply_counts(more: dict[str, Any]) -> None:
    assert of({**SAID, **more}).key != of().key


@pytest.mark.parametrize(
    "ground",
    [
        replace(GROUND, tenant=Tenant("b")),
        replace(GROUND, context=ContextName("other")),
        replace(GROUND, context=None, fingerprint=None),
        replace(GROUND, fingerprint=Fingerprint("2" * 64)),
        replace(GROUND, mode="distilled"),
        replace(GROUND, salt="mine"),
    ],
)
def test_what_a_reply_rests_on_counts_for_key_and_scope(ground: Ground) -> None:
    ours, theirs = of(), of(ground=ground)
    assert ours.key != theirs.key
    assert ours.scope != theirs.scope


@pytest.mark.parametrize("engine", [{"signature": Signature("6" * 64)}, {"version": "fake 2"}, {"model": "other"}])
def test_another_engine_or_version_of_it_is_another_key(engine: dict[str, Any]) -> None:
    assert of(**engine).key != of().key
    assert of(**engine).scope != of().scope


def test_without_the_secret_no_key_can_be_made_not_even_by_somebody_who_knows_the_tenant() -> None:
    other = Questions(secret=b"t" * 32, max_temperature=0.3).of(
        GROUND, path=CHAT, members=members(SAID), engine=DESCRIPTION
    )
    assert isinstance(other, Question)
    assert {other.key, other.scope}.isdisjoint({of().key, of().scope})


def test_the_scope_is_the_same_for_other_words_and_other_lengths() -> None:
    other = of({**SAID, "messages": user("How deep is it?"), "max_tokens": 9, "seed": 3, "temperature": 0.2})
    assert (other.scope, other.text, other.max_tokens) == (of().scope, "How deep is it?", 9)
    assert other.key != of().key


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "system", "content": "Be long."}, SAID["messages"][1]]},
        {"messages": [*SAID["messages"], {"role": "assistant", "content": "x"}, {"role": "user", "content": "Why?"}]},
        {"messages": user([{"type": "text", "text": "Where is the harbour?"}])},
        {"stop": ["\n"]},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_the_scope_has_everything_but_the_words(more: dict[str, Any]) -> None:
    assert of({**SAID, **more}).text is not None
    assert of({**SAID, **more}).scope != of().scope


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("more", "bar"),
    [
        ({"tools": [TOOL]}, Bar.TOOLS),
        ({"functions": [{"name": "f"}]}, Bar.TOOLS),
        ({"messages": [*user("Look"), {"role": "tool", "content": "7", "tool_call_id": "1"}]}, Bar.TOOLS),
        ({"messages": [{"role": "assistant", "tool_calls": [TOOL]}, *user("And?")]}, Bar.TOOLS),
        ({"n": 2}, Bar.CHOICES),
        ({"logprobs": True}, Bar.LOGPROBS),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, Bar.FORMAT),
        ({"temperature": None}, Bar.TEMPERATURE),
        ({"temperature": 0.9, "seed": 4}, Bar.TEMPERATURE),
        ({"messages": user("x" * (MAX_QUESTION_BYTES + 1))}, Bar.LENGTH),
        ({"messages": user("  ")}, Bar.PARTS),
        ({"messages": user(None)}, Bar.PARTS),
        ({"messages": user([{"type": "image_url", "image_url": {"url": "u"}}])}, Bar.PARTS),
        ({"messages": user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])}, Bar.PARTS),
        ({"messages": [*SAID["messages"], {"role": "assistant", "content": "I"}]}, Bar.PARTS),
    ],
)
def test_some_requests_are_answered_by_equal_ones_alone(more: dict[str, Any], bar: Bar) -> None:
    found = of({**SAID, **more})
    assert (found.text, found.bar) == (None, bar)


@pytest.mark.parametrize(
    ("path", "prompt", "bar"), [(COMPLETION, [1, 2], Bar.PARTS), (COMPLETION, ["a", "b"], Bar.PARTS)]
)
def test_completions_of_tokens_or_of_several_prompts_have_no_words(path: str, prompt: object, bar: Bar) -> None:
    assert of({"prompt": prompt, "temperature": 0}, path=path).bar is bar


def test_a_completion_is_not_the_chat_with_the_same_words() -> None:
    said = {"prompt": "Where?", "temperature": 0}
    assert of(said, path=COMPLETION).text == "Where?"
    assert of(said, path=COMPLETION).scope != of({"messages": [{"role": "user", "content": "Where?"}]}).scope


@pytest.mark.parametrize(
    ("path", "more", "bar"),
    [
        (CHAT, {"temperature": 0.31}, Bar.TEMPERATURE),
        ("/v1/responses", {}, Bar.ROUTE),
        ("/v1/embeddings", {}, Bar.ROUTE),
    ],
)
def test_some_requests_have_no_stored_answer_at_all(path: str, more: dict[str, Any], bar: Bar) -> None:
    assert QUESTIONS.of(GROUND, path=path, members=members({**SAID, **more}), engine=DESCRIPTION) is bar


def test_words_do_not_run_into_what_stands_beside_them() -> None:
    """Parts are hashed with their lengths: moving a boundary is another request."""
    one = of(ground=replace(GROUND, mode="full", salt="x"))
    other = of(ground=replace(GROUND, mode="fullx", salt=""))
    assert one.key != other.key
