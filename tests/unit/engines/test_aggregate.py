from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from nightfill.engines.aggregate import Aggregate


def whole(*events: dict[str, Any], copies: int = 1) -> dict[str, Any]:
    aggregate = Aggregate(copies=copies)
    for event in events:
        aggregate.add(json.dumps(event).encode())
    body: dict[str, Any] = json.loads(aggregate.body())
    return body


def chat(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def counted(prompt: int, output: int, cached: int) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": usage}


def test_a_chat_is_put_together() -> None:
    body = whole(chat(role="assistant", content=None), chat(content="he"), chat(content="llo"), chat(finish="stop"))
    assert body["object"] == "chat.completion"
    assert (body["id"], body["model"]) == ("c1", "m")
    assert body["choices"] == [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
    ]


def test_an_answer_without_content_has_none() -> None:
    assert whole(chat(role="assistant"), chat(finish="length"))["choices"][0]["message"]["content"] is None


def test_reasoning_is_put_together_apart_from_content() -> None:
    message = whole(chat(reasoning_content="a"), chat(reasoning_content="b"), chat(content="c"))["choices"][0][
        "message"
    ]
    assert (message["reasoning_content"], message["content"]) == ("ab", "c")


def test_calls_of_tools_are_put_together_by_their_index() -> None:
    def call(index: int, **parts: Any) -> dict[str, Any]:
        return chat(tool_calls=[{"index": index, **parts}])

    body = whole(
        call(0, id="x", type="function", function={"name": "look", "arguments": ""}),
        call(1, id="y", function={"name": "hear", "arguments": "{"}),
        call(0, function={"arguments": '{"n":'}),
        call(1, function={"arguments": "}"}),
        call(0, function={"arguments": "1}"}),
        chat(finish="tool_calls"),
    )
    calls = body["choices"][0]["message"]["tool_calls"]
    assert calls[0] == {"id": "x", "type": "function", "function": {"name": "look", "arguments": '{"n":1}'}}
    assert calls[1] == {"id": "y", "type": "function", "function": {"name": "hear", "arguments": "{}"}}


def test_texts_and_log_probabilities_grow() -> None:
    def text(piece: str, finish: str | None = None) -> dict[str, Any]:
        logprobs = {"content": [{"token": piece}]} if piece else None
        choice = {"index": 0, "text": piece, "logprobs": logprobs, "finish_reason": finish}
        return {"object": "text_completion", "choices": [choice]}

    body = whole(text("a"), text("b"), text("", "stop"))
    assert body["object"] == "text_completion"
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_choices_come_in_their_order_however_they_arrive() -> None:
    body = whole(chat(1, content="b"), chat(0, content="a"), chat(1, content="B"), chat(0, content="A"))
    assert [choice["message"]["content"] for choice in body["choices"]] == ["aA", "bB"]


def test_one_usage_is_passed_on_as_it_is() -> None:
    assert whole(chat(content="a"), counted(7, 3, 5))["usage"] == counted(7, 3, 5)["usage"]


def test_the_tokens_of_several_answers_to_one_prompt_count_their_prompt_once() -> None:
    usage = whole(counted(7, 3, 4), counted(7, 2, 4), copies=2)["usage"]
    assert usage == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_the_tokens_of_several_prompts_count_all() -> None:
    usage = whole(counted(7, 3, 4), counted(9, 2, 0))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (16, 5, 21)


def test_progress_stays_out_of_the_answer() -> None:
    assert "prompt_progress" not in whole({**chat(content="a"), "prompt_progress": {"total": 1}})


def test_an_error_midway_is_remembered_as_it_came() -> None:
    aggregate = Aggregate()
    aggregate.add(b'{"error":{"code":500,"message":"x"}}')
    assert aggregate.error == b'{"error":{"code":500,"message":"x"}}'


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        Aggregate().add(b"[DONE]")
