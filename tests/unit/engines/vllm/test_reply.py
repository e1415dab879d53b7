from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from nightfill.engines.engine import Tokens
from nightfill.engines.vllm.reply import VllmReply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.engines.upstream import StreamResponse

USAGE = {"prompt_tokens": 50, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 32}}
TIMES = {"time_to_first_token_ms": 400.0, "generation_time_ms": 1100.0, "queue_time_ms": 5000.0}
GUESSES = {"num_draft_tokens": 30, "num_accepted_draft_tokens": 12, "acceptance_histogram": [1, 2, 3, 4]}
USUAL = Tokens(prompt=50, reused=32, output=20)


class Response:
    """What a server answered."""

    status = 200
    content_type = "text/event-stream"

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


async def tokens(answer: dict[str, Any], *, streamed: bool) -> Tokens:
    body = json.dumps(answer).encode()
    chunks = [b"data: " + body + b"\n\n", b"data: [DONE]\n\n"] if streamed else [body]
    response = cast("StreamResponse", Response(*chunks))
    reply = VllmReply(response, engine="v1", streamed=streamed, hides_usage=True, loaded_tokens=0)
    assert [piece async for piece in reply.chunks()]
    return reply.tokens


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("metrics", "counted"),
    [
        (None, USUAL),
        (TIMES, Tokens(prompt=50, reused=32, output=20, compute_s=1.5)),
        ({"speculative_decoding": GUESSES}, Tokens(prompt=50, reused=32, output=20, drafted=30, accepted=12)),
        ({"time_to_first_token_ms": 400.0, "speculative_decoding": None}, USUAL),
    ],
)
async def test_seconds_and_guesses_are_read_where_the_server_tells_them(
    metrics: dict[str, Any] | None, counted: Tokens, streamed: bool
) -> None:
    assert await tokens({"choices": [], "usage": USAGE, "metrics": metrics}, streamed=streamed) == counted


async def test_an_answer_of_an_older_server_has_neither() -> None:
    assert await tokens({"choices": [], "usage": USAGE}, streamed=True) == USUAL
