from __future__ import annotations

import json
from typing import Any

import pytest

from nightfill.answers.reply import Kept, Recording, Unfit, keep, words_of
from nightfill.engines.engine import Tokens

TOKENS = Tokens(prompt=9, reused=4, output=2)
REPLY: dict[str, Any] = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "To the north."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    "timings": {"prompt_ms": 1.5},
}


def recorded(*pieces: bytes, streamed: bool = False, max_bytes: int = 10_000) -> Recording:
    recording = Recording(streamed=streamed, max_bytes=max_bytes)
    for piece in pieces:
        recording.add(piece)
    return recording


def kept(
    reply: dict[str, Any] | bytes = b"", tokens: Tokens = TOKENS, *, bounded: bool = False, **choice: Any
) -> Kept | Unfit:
    if not reply:
        reply = {**REPLY, "choices": [{**REPLY["choices"][0], **choice}]}
    body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    return keep(recorded(body), tokens, bounded=bounded, max_bytes=10_000)


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


STREAM = [
    event(index=0, delta={"role": "assistant", "content": None}),
    event(index=0, delta={"content": "To the "}) + event(index=0, delta={"content": "north."}),
    event(index=0, delta={}, finish_reason="stop"),
    b"data: [DONE]\n\n",
]


def test_a_whole_reply_is_kept_with_its_usage_and_without_what_speaks_of_its_making() -> None:
    found = kept()
    assert isinstance(found, Kept)
    assert found.to_its_end
    assert json.loads(found.body) == {name: value for name, value in REPLY.items() if name != "timings"}


def test_a_stream_is_kept_as_the_reply_that_it_says_with_the_counts_of_the_engine() -> None:
    found = keep(recorded(*STREAM, streamed=True), TOKENS, bounded=False, max_bytes=10_000)
    assert isinstance(found, Kept)
    reply = json.loads(found.body)
    assert words_of(found.body) == ["To the north."]
    assert reply["object"] == "chat.completion"
    assert reply["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


@pytest.mark.parametrize(
    "pieces",
    [
        STREAM[:-1],
        [*STREAM[:2], b'data: {"error": {"message": "gone", "code": 500}}\n\n', *STREAM[2:]],
        [*STREAM[:2], b"data: {not json\n\n", *STREAM[2:]],
        [b"data: 7\n\n", b"data: [DONE]\n\n"],
        [b"data: [DONE]\n\n"],
    ],
)
def test_a_stream_that_did_not_come_to_a_good_end_is_not_kept(pieces: list[bytes]) -> None:
    found = keep(recorded(*pieces, streamed=True), TOKENS, bounded=False, max_bytes=10_000)
    assert found is Unfit.BROKEN


@pytest.mark.parametrize(
    "body", [b"", b"7", b"{}", b'{"choices": []}', b'{"choices": 7}', b'{"choices": [7]}', b"\xff"]
)
def test_what_is_no_answer_is_not_kept(body: bytes) -> None:
    assert keep(recorded(body), TOKENS, bounded=False, max_bytes=10_000) is Unfit.BROKEN


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({"finish_reason": "length"}, Unfit.CUT),
        ({"finish_reason": "content_filter"}, Unfit.CUT),
        ({"finish_reason": None}, Unfit.CUT),
        ({"message": {"content": ""}}, Unfit.EMPTY),
        ({"message": {"content": "x", "tool_calls": [{"function": {"name": "f"}}]}}, Unfit.TOOLS),
        ({"message": {"content": None, "function_call": {"name": "f"}}}, Unfit.TOOLS),
    ],
)
def test_some_answers_are_not_worth_keeping(choice: dict[str, Any], why: Unfit) -> None:
    assert kept(**choice) is why


def test_an_answer_that_the_requests_own_bound_cut_is_for_equal_requests() -> None:
    found = kept(bounded=True, finish_reason="length")
    assert isinstance(found, Kept)
    assert not found.to_its_end
    assert kept(bounded=True, finish_reason="content_filter") is Unfit.CUT


def test_an_answer_of_which_nobody_said_how_long_it_is_is_not_kept() -> None:
    reply = {name: value for name, value in REPLY.items() if name != "usage"}
    assert kept(reply, Tokens(prompt=9)) is Unfit.USAGE
    assert isinstance(kept(reply, TOKENS), Kept)


def test_long_answers_are_let_go_as_they_pass_by() -> None:
    recording = recorded(b"x" * 60, max_bytes=100)
    assert not recording.too_long
    recording.add(b"x" * 60)
    assert (recording.too_long, recording.pieces) == (True, [])
    assert keep(recording, TOKENS, bounded=False, max_bytes=100) is Unfit.LONG


def test_a_stream_may_be_longer_than_what_it_says_but_not_that() -> None:
    recording = recorded(*STREAM, streamed=True, max_bytes=100)
    assert not recording.too_long
    assert keep(recording, TOKENS, bounded=False, max_bytes=100) is Unfit.LONG
