from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from nightfill.bench.client import Client, Target
from nightfill.bench.query import Query
from nightfill.errors import EngineError, NotFound

if TYPE_CHECKING:
    from nightfill.bench.query import Sample
    from unit.bench.conftest import OpenAiServer, Pieces


async def ask(server: OpenAiServer, *, cold: bool = False, **target: str) -> Sample:
    async with Client(Target(url=server.url, model="tiny", **target)) as client:  # type: ignore[arg-type]
        return await client.ask(Query(index=3, question="why?", cold=cold), 0.0)


class Ticks:
    """A clock that says what the test last set, and knows whether it was looked at since."""

    def __init__(self) -> None:
        self.set(100.0)

    def set(self, now_s: float) -> None:
        self.now_s, self.seen = now_s, asyncio.Event()

    def __call__(self) -> float:
        self.seen.set()
        return self.now_s


async def test_the_first_token_is_the_first_text_and_not_the_first_chunk(
    server: OpenAiServer, pieces: type[Pieces]
) -> None:
    clock, text, rest = Ticks(), asyncio.Event(), asyncio.Event()
    role, hello = pieces.delta(role="assistant", content=""), pieces.delta(content="hello")
    server.answer = lambda _: pieces.of(role, text, hello, rest, pieces.finish())
    async with Client(Target(url=server.url, model="tiny"), clock=clock) as client, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(client.ask(Query(index=0, question="why?", cold=False), 99.0))
        await clock.seen.wait()  # the role came
        clock.set(102.0)
        text.set()
        await clock.seen.wait()
        clock.set(105.0)
        rest.set()
        sample = await asking
    assert (sample.ttft_s, sample.total_s, sample.error) == (3.0, 6.0, "")


async def test_a_reply_reports_its_tokens_and_its_layer(server: OpenAiServer, pieces: type[Pieces]) -> None:
    headers = {"x-nightfill-layer": "fill", "x-nightfill-reused-tokens": "7"}
    server.answer = lambda _: pieces.of(pieces.delta(content="a"), pieces.finish(cached=990), headers=headers)
    sample = await ask(server, context="repo")
    assert (sample.index, sample.status, sample.layer) == (3, 200, "fill")
    assert (sample.prompt_tokens, sample.cached_tokens, sample.output_tokens) == (1000, 990, 3)


@pytest.mark.parametrize(("header", "expected"), [({"x-nightfill-reused-tokens": "7"}, 7), ({}, None)])
async def test_reused_tokens_come_from_the_header_when_usage_does_not_say(
    server: OpenAiServer, pieces: type[Pieces], header: dict[str, str], expected: int | None
) -> None:
    server.answer = lambda _: pieces.of(pieces.delta(content="a"), pieces.finish(cached=None), headers=header)
    assert (await ask(server)).cached_tokens == expected


async def test_a_reply_without_any_text_counts_its_end_as_the_first_token(
    server: OpenAiServer, pieces: type[Pieces]
) -> None:
    server.answer = lambda _: pieces.of(pieces.delta(role="assistant"), pieces.finish())
    sample = await ask(server)
    assert sample.ok
    assert sample.ttft_s == sample.total_s


async def test_a_named_context_is_asked_with_its_fill_or_without(server: OpenAiServer) -> None:
    await ask(server, context="repo")
    await ask(server, context="repo", cold=True)
    filled, cold = server.asked
    assert filled["nightfill"] == {"context": "repo"}
    assert cold["nightfill"] == {"context": "repo", "skip": ["fill"]}
    assert filled["messages"] == cold["messages"] == [{"role": "user", "content": "why?"}]
    assert filled["stream_options"] == {"include_usage": True}


async def test_a_prompt_sent_whole_starts_unlike_any_other_when_it_is_to_be_cold(server: OpenAiServer) -> None:
    for cold in (False, False, True, True):
        await ask(server, prompt="A long text.", cold=cold)
    warm, again, cold_one, cold_two = (asked["messages"][0]["content"] for asked in server.asked)
    assert warm == again == "A long text.\n\nwhy?"
    assert cold_one.endswith(warm)
    assert cold_two.endswith(warm)
    assert cold_one[:8] != cold_two[:8] != warm[:8]
    assert all("nightfill" not in asked for asked in server.asked)  # other servers refuse what they do not know


async def test_the_api_key_is_sent_and_never_shown(server: OpenAiServer) -> None:
    target = Target(url=server.url, model="tiny", api_key="s3cret")
    async with Client(target) as client:
        await client.ask(Query(index=0, question="why?", cold=False), 0.0)
    assert server.keys == ["bearer s3cret"]
    assert "s3cret" not in repr(target)


async def test_an_error_of_the_server_is_a_sample_that_says_so(server: OpenAiServer, pieces: type[Pieces]) -> None:
    body = b'{"error": {"message": "slow down", "type": "rate_limit_exceeded"}}'
    server.answer = lambda _: pieces.of(body, status=429)
    sample = await ask(server)
    assert (sample.status, sample.error, sample.ttft_s, sample.ok) == (429, "HTTP 429: slow down", None, False)


async def test_a_body_that_is_no_error_of_openai_is_not_repeated(server: OpenAiServer, pieces: type[Pieces]) -> None:
    server.answer = lambda _: pieces.of(b"<html>the whole prompt</html>", status=502)
    assert (await ask(server)).error == "HTTP 502: no OpenAI error with it"


async def test_an_error_inside_the_stream_is_a_failure(server: OpenAiServer, pieces: type[Pieces]) -> None:
    failed = pieces.event({"error": {"message": "engine died", "code": 503}})
    server.answer = lambda _: pieces.of(pieces.delta(content="a"), failed)
    sample = await ask(server)
    assert sample.error == "the stream says: engine died"
    assert sample.ttft_s is not None


async def test_a_stream_that_just_ends_is_a_failure(server: OpenAiServer, pieces: type[Pieces]) -> None:
    server.answer = lambda _: pieces.of(pieces.delta(content="a"))
    assert (await ask(server)).error == "the stream ended before its reply did"


async def test_an_event_that_is_not_json_is_a_failure(server: OpenAiServer, pieces: type[Pieces]) -> None:
    server.answer = lambda _: pieces.of(b"data: {oops\n\n", pieces.finish())
    assert "not OpenAI's" in (await ask(server)).error


async def test_events_cut_anywhere_are_put_together(server: OpenAiServer, pieces: type[Pieces]) -> None:
    whole = pieces.delta(content="a") + b": ping\n\n" + pieces.finish()
    server.answer = lambda _: pieces.of(*(bytes([byte]) for byte in whole))
    sample = await ask(server)
    assert (sample.error, sample.cached_tokens) == ("", 990)


async def test_an_address_where_nobody_listens_is_a_failure_of_each_query(unused_address: str) -> None:
    async with Client(Target(url=unused_address, model="tiny")) as client:
        sample = await client.ask(Query(index=0, question="why?", cold=False), 0.0)
    assert (sample.status, sample.ok) == (0, False)
    assert "cannot be reached" in sample.error


async def test_a_server_that_falls_silent_is_given_up(server: OpenAiServer, pieces: type[Pieces]) -> None:
    never = asyncio.Event()
    server.answer = lambda _: pieces.of(pieces.delta(content="a"), never)
    async with Client(Target(url=server.url, model="tiny", idle_timeout_s=0.05)) as client:
        sample = await client.ask(Query(index=0, question="why?", cold=False), 0.0)
    never.set()
    assert "sent nothing for 0.05 s" in sample.error


async def test_the_first_model_of_the_server_is_taken_when_none_is_named(server: OpenAiServer) -> None:
    async with Client(Target(url=server.url + "/v1/")) as client:
        assert await client.choose_model() == "tiny"
        await client.ask(Query(index=0, question="why?", cold=False), 0.0)
    assert server.asked[0]["model"] == "tiny"


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [(b'{"data": []}', 200, NotFound), (b'{"error": {"message": "no"}}', 401, EngineError), (b"{", 200, EngineError)],
)
async def test_without_a_model_there_is_nothing_to_measure(
    server: OpenAiServer, pieces: type[Pieces], body: bytes, status: int, error: type[Exception]
) -> None:
    server.models = pieces.of(body, status=status)
    async with Client(Target(url=server.url)) as client:
        with pytest.raises(error):
            await client.choose_model()


async def test_a_context_without_a_fill_for_chats_is_absent(server: OpenAiServer, pieces: type[Pieces]) -> None:
    async with Client(Target(url=server.url, context="repo")) as client:
        assert (await client.fill_seen()).state == "ready"
        server.context = pieces.of(b'{"fills": []}')
        assert (await client.fill_seen()).state == "absent"
