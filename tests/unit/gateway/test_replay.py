from __future__ import annotations

import json
from typing import Any

import pytest

from nightfill.answers.reply import Recording, keep
from nightfill.engines.engine import Tokens
from nightfill.engines.sse import payloads
from nightfill.gateway import replay

TEXT = "The harbour lies to the north,\n\nbehind  the customs house: é 港 \U0001f6a2 " + "x" * 100
USAGE = {"prompt_tokens": 9, "completion_tokens": 11, "total_tokens": 20}
CHAT: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 5,
    "model": "demo",
    "system_fingerprint": "b1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
    "usage": USAGE,
}
LOGPROBS = {"content": [{"token": "a", "logprob": -0.1}]}
OTHERS: list[dict[str, Any]] = [
    CHAT,
    {**CHAT, "choices": [{**CHAT["choices"][0], "index": index} for index in range(3)]},
    {**CHAT, "choices": [{**CHAT["choices"][0], "logprobs": LOGPROBS}]},
    {
        **CHAT,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "reasoning_content": "Let me see. " * 9, "content": TEXT},
                "finish_reason": "stop",
            }
        ],
    },
    {
        **CHAT,
        "object": "text_completion",
        "choices": [{"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "length"}],
    },
]


def parsed(stream: bytes) -> list[dict[str, Any]]:
    *events, last = payloads(stream)
    assert last == b"[DONE]"
    return [json.loads(event) for event in events]


def without_id(reply: dict[str, Any]) -> dict[str, Any]:
    choices = [{"logprobs": None, **choice} for choice in reply["choices"]]
    return {name: value for name, value in {**reply, "choices": choices}.items() if name != "id"}


def test_a_whole_reply_is_as_it_was_under_an_id_of_its_own() -> None:
    body = json.dumps(CHAT).encode()
    one, other = (json.loads(replay.whole(body)) for _ in range(2))
    assert {name: value for name, value in one.items() if name != "id"} == {
        name: value for name, value in CHAT.items() if name != "id"
    }
    assert len({one["id"], other["id"], "chatcmpl-1"}) == 3
    assert one["id"].startswith("chatcmpl-")


@pytest.mark.parametrize("reply", OTHERS)
def test_a_stream_put_together_again_is_the_reply(reply: dict[str, Any]) -> None:
    stream = replay.events(json.dumps(reply).encode(), usage=True)
    recording = Recording(streamed=True, max_bytes=1 << 20)
    recording.add(stream)
    again = keep(recording, Tokens(prompt=9, output=11), bounded=True, max_bytes=1 << 20)
    assert not isinstance(again, str), again
    assert without_id(json.loads(again.body)) == without_id(reply)


def test_a_stream_begins_with_the_role_comes_in_pieces_and_ends_with_a_reason() -> None:
    first, *pieces, last = parsed(replay.events(json.dumps(CHAT).encode(), usage=False))
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(pieces) > 3
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == TEXT
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert len({event["id"] for event in (first, *pieces, last)}) == 1
    assert {event["created"] for event in (first, *pieces, last)} == {5}


def test_the_usage_comes_last_and_only_where_it_is_wanted() -> None:
    body = json.dumps(CHAT).encode()
    *others, last = parsed(replay.events(body, usage=True))
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert not any("usage" in event for event in (*others, *parsed(replay.events(body, usage=False))))
