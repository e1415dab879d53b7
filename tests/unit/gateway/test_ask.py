from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.house import CHAT
from nightfill.contexts.context import Form
from nightfill.errors import BadInput, BadRequest
from nightfill.gateway.ask import decode_ask

CHATS = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USER = {"role": "user", "content": "hi"}


def refused(path: str, body: bytes) -> BadInput:
    with pytest.raises(BadInput) as caught:
        decode_ask(path, body, {})
    return caught.value


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"messages": []}, "messages", "length >= 1"),
        ({"messages": "hi"}, "messages", "array"),
        ({"messages": ["hi"]}, "messages[0]", "object"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "required"),
        ({"messages": [{"role": 3, "content": "hi"}]}, "messages[0].role", "str"),
        ({"messages": [{"role": "", "content": "hi"}]}, "messages[0].role", "letters"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "str"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", "required"),
        ({"temperature": -5}, "temperature", ">= 0"),
        ({"temperature": "hot"}, "temperature", "float"),
        ({"temperature": True}, "temperature", "float"),
        ({"top_p": 2}, "top_p", "<= 1"),
        ({"n": 0}, "n", ">= 1"),
        ({"n": 129}, "n", "<= 128"),
        ({"max_tokens": 1.5}, "max_tokens", "int"),
        ({"max_completion_tokens": -2}, "max_completion_tokens", ">= 0"),
        ({"stream": "yes"}, "stream", "bool"),
        ({"stream_options": []}, "stream_options", "object"),
        ({"seed": 2**64}, "seed", "int"),
        ({"stop": 3}, "stop", "str"),
        ({"model": 7}, "model", "str"),
        ({"logprobs": 5}, "logprobs", "bool"),
        ({"tools": {}}, "tools", "array"),
        ({"id_slot": 0}, "id_slot", "not allowed"),
        ({"lora": []}, "lora", "not allowed"),
        ({"nightfill": {"contxt": "x"}}, "nightfill", "did you mean 'context'"),
        ({"nightfill": {"mode": "x"}}, "nightfill.mode", "allowed: auto, distilled, full"),
        ({"nightfill": {"skip": ["all"]}}, "nightfill.skip[0]", "allowed: answer, fill"),
        ({"nightfill": {"max_age_s": -1}}, "nightfill.max_age_s", ">= 0"),
        ({"nightfill": {"context": "No Such!"}}, "nightfill.context", "a-z"),
        ({"nightfill": "repo"}, "nightfill", "object"),
    ],
)
def test_nonsense_in_a_chat_is_refused_by_name(change: dict[str, Any], param: str, says: str) -> None:
    error = refused(CHATS, json.dumps({**CHAT, **change}).encode())
    assert error.param == param
    assert says in str(error)


@pytest.mark.parametrize("prompt", [None, 3, {}, [], [True], [-1], [[]], ["a", None], [["a"]], [2**40]])
def test_a_prompt_is_text_or_token_ids(prompt: object) -> None:
    error = refused(COMPLETIONS, json.dumps({"prompt": prompt}).encode())
    assert error.param is not None
    assert error.param.startswith("prompt")


@pytest.mark.parametrize("prompt", ["", "text", ["a", "b"], [1, 2], [[1], [2]], ["a", 1]])
def test_prompts_as_engines_take_them_pass(prompt: object) -> None:
    ask = decode_ask(COMPLETIONS, json.dumps({"prompt": prompt}).encode(), {})
    assert json.loads(bytes(ask.members["prompt"])) == prompt
    assert ask.form is Form.COMPLETION


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b'"text"',
        b'{"a": NaN}',
        b'{"a": 1} x',
        b'{"a": "\xff"}',
        b'{"a": [{"b": "\xc3"}]}',
        b"{" * 5000,
        b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    assert isinstance(refused(CHATS, body), BadRequest)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[{"role":"user","content":"a"}],"messages":[{"role":"user","content":"b"}]}',
        b'{"model":"a", "messages":[{"role":"user","content":"a"}] , "model" : "a"}',
        b'{"messages":[{"role":"user","content":"a"}],"seed":1,"seed":12}',
        b'{"messages":[{"role":"user","content":"a"}],"seed":12,"seed":1}',
        b'{"messages":[{"role":"user","content":"a"}],"id_slo\\u0074":1,"id_slot":1}',
        b'{"messages":[{"role":"user","content":"a"}],"x":1,"\\u0078":1}',
    ],
)
def test_a_member_that_comes_twice_is_refused(body: bytes) -> None:
    refused(CHATS, body)


def test_a_reserved_member_is_refused_however_its_name_is_written() -> None:
    assert refused(CHATS, b'{"messages":[{"role":"user","content":"a"}],"id_slo\\u0074":1}').param == "id_slot"


def test_unknown_members_keep_their_bytes() -> None:
    body = b'{ "messages" : [ {"role":"user","content":"a", "odd" : 1.50 } ] ,"top_k":40,"x":{"a" : 1e3,"b":[ ]} }'
    ask = decode_ask(CHATS, body, {})
    assert bytes(ask.members["x"]) == b'{"a" : 1e3,"b":[ ]}'
    assert bytes(ask.members["messages"]) == b'[ {"role":"user","content":"a", "odd" : 1.50 } ]'


def test_null_means_not_given() -> None:
    nulls = dict.fromkeys(("model", "stream", "temperature", "n", "stop", "seed", "tools", "nightfill", "logit_bias"))
    ask = decode_ask(CHATS, json.dumps({"messages": [USER], **nulls}).encode(), {})
    assert (ask.model, ask.stream, ask.context, ask.reuse) == (None, False, None, True)


def test_whether_to_use_a_cache_is_said_to_the_engine_by_the_gateway() -> None:
    ask = decode_ask(CHATS, json.dumps({**CHAT, "cache_prompt": True, "return_progress": True}).encode(), {})
    assert "cache_prompt" not in ask.members
    assert bytes(ask.members["return_progress"]) == b"true"
    assert ask.reuse
    assert not decode_ask(CHATS, json.dumps({**CHAT, "cache_prompt": False}).encode(), {}).reuse
