from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from nightfill.engines.engine import Tokens
from nightfill.engines.llama.reply import LlamaReply, counts_of, error_status
from nightfill.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.engines.upstream import StreamResponse

PROGRESS = {"prompt_progress": {"total": 50, "cache": 40, "processed": 45, "time_ms": 1}}
USAGE = {"prompt_tokens": 50, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 40}}


class Response:
    def __init__(self, *chunks: bytes, status: int = 200, content_type: str = "text/event-stream") -> None:
        self.status, self.content_type, self.headers = status, content_type, {"content-type": content_type}
        self._left = list(chunks)

    async def chunks(self) -> AsyncIterator[bytes]:
        while self._left:
            yield self._left.pop(0)


def event(body: object) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}], **more}


DONE = b"data: [DONE]\n\n"
ANSWER = (event(PROGRESS), event(said("a")), event(said("b")), event({"choices": [], "usage": USAGE}), DONE)


async def replied(
    *chunks: bytes,
    streamed: bool = True,
    joined: bool = False,
    wants_progress: bool = False,
    loaded: int = 40,
    status: int = 200,
) -> LlamaReply:
    reply = LlamaReply(
        engine="e",
        path="/v1/chat/completions",
        streamed=streamed,
        joined=joined,
        wants_progress=wants_progress,
        loaded_tokens=loaded,
        restore_s=0.0,
        queued_s=0.0,
    )
    await reply.begin(cast("StreamResponse", Response(*chunks, status=status)))
    return reply


async def read(reply: LlamaReply) -> bytes:
    return b"".join([chunk async for chunk in reply.chunks()])


async def test_what_is_reused_is_known_before_the_first_token() -> None:
    reply = await replied(*ANSWER)
    assert reply.tokens == Tokens(prompt=50, reused=40)
    assert await read(reply) == b"".join(ANSWER[1:])
    assert reply.tokens == Tokens(prompt=50, reused=40, output=2)


async def test_progress_goes_to_those_who_asked_for_it() -> None:
    assert await read(await replied(*ANSWER, wants_progress=True)) == b"".join(ANSWER)


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_events_stay_whole_however_they_are_cut_on_the_way(size: int) -> None:
    raw = b"".join(ANSWER)
    reply = await replied(*(raw[at : at + size] for at in range(0, len(raw), size)))
    pieces = [chunk async for chunk in reply.chunks()]
    assert b"".join(pieces) == b"".join(ANSWER[1:])
    assert all(piece.endswith(b"\n\n") for piece in pieces)


async def test_a_text_that_speaks_of_progress_is_left_alone() -> None:
    text = event(said('{"prompt_progress": 1}'))
    assert await read(await replied(text, DONE)) == text + DONE


async def test_for_a_client_that_wants_no_stream_the_events_become_one_answer() -> None:
    reply = await replied(*ANSWER, joined=True)
    assert reply.content_type == "application/json"
    body = json.loads(await read(reply))
    assert body["choices"][0]["message"]["content"] == "ab"
    assert body["usage"] == USAGE
    assert reply.tokens.output == 2


async def test_an_answer_that_breaks_off_is_never_passed_on_as_whole() -> None:
    reply = await replied(*ANSWER[:3], joined=True)
    with pytest.raises(EngineUnavailable):
        await read(reply)


async def test_an_error_midway_becomes_the_answer_s_status() -> None:
    failure = event({"error": {"code": 503, "message": "no slot", "type": "unavailable_error"}})
    reply = await replied(event(PROGRESS), failure, joined=True)
    body = json.loads(await read(reply))
    assert reply.status >= 400
    assert "message" in body["error"]


async def test_a_refusal_is_an_answer_with_a_status() -> None:
    refusal = json.dumps({"error": {"code": 400, "message": "too long", "type": "invalid_request_error"}}).encode()
    reply = await replied(refusal, status=400)
    assert (reply.status, reply.content_type) == (400, "application/json")
    assert "too long" in json.loads(await read(reply))["error"]["message"]
    assert not reply.kept()


@pytest.mark.parametrize(("loaded", "kept"), [(40, True), (41, True), (42, False), (0, True)])
async def test_a_slot_keeps_its_prefix_if_it_was_reused(loaded: int, kept: bool) -> None:
    """Of a prompt that is known whole, one token is computed anew."""
    reply = await replied(*ANSWER, loaded=loaded)
    await read(reply)
    assert reply.kept() is kept


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        ({"timings": {"cache_n": 3, "prompt_n": 4, "predicted_n": 5}}, Tokens(prompt=7, reused=3, output=5)),
        (
            {
                "timings": {"cache_n": 3, "prompt_n": 4, "prompt_ms": 500.0, "predicted_n": 5, "predicted_ms": 1500.0}
                | {"draft_n": 6, "draft_n_accepted": 4}
            },
            Tokens(prompt=7, reused=3, output=5, drafted=6, accepted=4, compute_s=2.0),
        ),
        ({"usage": USAGE}, Tokens(prompt=50, reused=40, output=2)),
        ({"usage": {"prompt_tokens": 5}}, Tokens(prompt=5)),
        ({"choices": []}, None),
        ([], None),
    ],
)
def test_counts_are_read_where_they_are(body: object, counts: Tokens | None) -> None:
    assert counts_of(json.dumps(body).encode()) == counts


def test_counts_of_what_is_not_json_are_none() -> None:
    assert counts_of(b"\xff{") is None


@pytest.mark.parametrize(
    ("payload", "status"),
    [(b'{"error":{"code":400}}', 400), (b'{"error":{}}', 500), (b'{"error":{"code":7}}', 500), (b"x", 500)],
)
def test_an_error_s_status_is_one_of_http(payload: bytes, status: int) -> None:
    assert error_status(payload) == status


async def test_how_quickly_the_prompt_was_computed_is_read_in_passing() -> None:
    timings = {"cache_n": 10, "prompt_n": 400, "prompt_ms": 200.0, "predicted_n": 2}
    reply = await replied(*ANSWER[:3], event({"choices": [], "usage": USAGE, "timings": timings}), DONE)
    assert reply.prefill == (0, 0.0)
    assert [chunk async for chunk in reply.chunks()]
    assert reply.prefill == (400, 0.2)
    silent = await replied(*ANSWER)
    assert [chunk async for chunk in silent.chunks()]
    assert silent.prefill == (0, 0.0)
