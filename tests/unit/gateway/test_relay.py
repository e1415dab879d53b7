from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import openai
import pytest

from fakes.engine import DONE, event
from fakes.house import CHAT, post
from nightfill.config import Duration
from nightfill.errors import EngineUnavailable

if TYPE_CHECKING:
    from fakes.house import House

STREAM = {**CHAT, "stream": True}


async def test_a_stream_reaches_the_client_chunk_by_chunk_and_unchanged(house: House) -> None:
    house.engine.gates[1] = asyncio.Event()
    async with house.client() as client, client.post("/v1/chat/completions", json=STREAM) as reply:
        assert reply.status == 200
        assert reply.headers["content-type"] == "text/event-stream"
        assert await reply.content.readuntil(b"\n\n") == event("a")  # while the engine holds the next one back
        house.engine.gates[1].set()
        assert await reply.content.read() == event("b") + DONE


async def test_an_answer_in_one_piece_has_its_length_and_bytes(house: House) -> None:
    async with house.client() as client, client.post("/v1/chat/completions", json=CHAT) as reply:
        assert await reply.read() == house.engine.whole
        assert reply.headers["content-length"] == str(len(house.engine.whole))
        assert reply.headers["x-nightfill-layer"] == "cold"
        assert reply.headers["x-nightfill-engine"] == "fake"


async def test_a_client_that_leaves_midway_ends_the_work_on_the_engine(house: House) -> None:
    house.engine.gates[1] = asyncio.Event()
    async with house.client() as client:
        async with client.post("/v1/chat/completions", json=STREAM) as reply:
            await reply.content.readuntil(b"\n\n")
            assert house.board.in_flight == 1
            reply.close()
        await asyncio.wait_for(house.engine.aborted.wait(), 1)
    assert (house.engine.running, house.board.in_flight) == (0, 0)
    assert house.value("nightfill_clients_left_total") == 1
    assert [row.status for row in house.access.rows] == [499]


async def test_a_client_that_leaves_before_the_first_byte_ends_the_work_too(house: House) -> None:
    house.engine.gates[0] = asyncio.Event()
    async with house.client() as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT).__aenter__())
        await house.engine.opened.wait()
        asking.cancel()
        await asyncio.wait_for(house.engine.aborted.wait(), 1)
    assert house.board.in_flight == 0


async def test_an_engine_that_dies_midway_becomes_an_error_event(house: House) -> None:
    house.engine.dies_before = 1
    house.engine.death = EngineUnavailable("died", engine="fake")
    async with house.client() as client, client.post("/v1/chat/completions", json=STREAM) as reply:
        events = (await reply.read()).split(b"\n\n")
    assert events[0] + b"\n\n" == event("a")
    assert b'"code":"engine_unavailable"' in events[1]
    assert house.board.in_flight == 0


async def test_an_engine_that_dies_before_its_first_byte_is_a_503_that_says_when_to_retry(house: House) -> None:
    house.engine.dies_before = 0
    house.engine.death = EngineUnavailable("died", engine="fake")
    async with house.client() as client, client.post("/v1/chat/completions", json=STREAM) as reply:
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert (await reply.json())["error"]["type"] == "server_error"


async def test_an_engine_that_never_begins_is_a_504(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, first_byte_timeout_s=Duration(0.05))
    house.engine.gates[0] = asyncio.Event()
    async with house.client() as client:
        assert await post(client, "/v1/chat/completions", json=CHAT) == 504
        assert await post(client, "/v1/chat/completions", json=STREAM) == 504
    assert (house.engine.running, house.board.in_flight) == (0, 0)
    assert [row.status for row in house.access.rows] == [504, 504]


async def test_an_engine_that_falls_silent_midway_ends_the_stream_with_an_error(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, idle_timeout_s=Duration(0.05))
    house.engine.gates[1] = asyncio.Event()
    async with house.client() as client, client.post("/v1/chat/completions", json=STREAM) as reply:
        assert b'"code":"engine_timeout"' in await reply.read()
    assert house.engine.running == 0


async def test_a_client_that_stops_reading_does_not_keep_the_engine(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, idle_timeout_s=Duration(0.1))
    house.engine.script = [event("x" * (1 << 20))] * 64
    async with house.open() as server:
        _, writer = await asyncio.open_connection(server.host, server.port, limit=1024)
        body = msgspec.json.encode(STREAM)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await asyncio.wait_for(house.engine.aborted.wait(), 5)
        writer.transport.abort()
    assert house.board.in_flight == 0


async def test_a_stream_that_carries_nothing_is_an_error_not_an_empty_answer(house: House) -> None:
    house.engine.script = []
    async with house.client() as client:
        assert await post(client, "/v1/chat/completions", json=STREAM) == 502


async def test_the_time_to_first_token_counts_from_the_first_content(house: House) -> None:
    opening = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    house.engine.script = [opening, event("a"), DONE]
    house.engine.gates[1] = asyncio.Event()
    async with house.client() as client, client.post("/v1/chat/completions", json=STREAM) as reply:
        await reply.content.readuntil(b"\n\n")
        await asyncio.sleep(0.05)
        house.engine.gates[1].set()
        await reply.read()
    assert house.board.ttfts[0] >= 0.05
    assert house.access.rows[0].ttft_s == house.board.ttfts[0]


async def test_the_official_client_streams_asks_fails_and_leaves(house: House) -> None:
    house.engine.whole = (
        b'{"id":"1","object":"chat.completion","created":1,"model":"demo","choices":[{"index":0,"finish_reason":"stop",'
        b'"message":{"role":"assistant","content":"ab"}}],"usage":{"prompt_tokens":9,"completion_tokens":2,'
        b'"total_tokens":11,"prompt_tokens_details":{"cached_tokens":8}}}'
    )
    messages: Any = [{"role": "user", "content": "hi"}]
    async with (
        house.open() as server,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        whole = await client.chat.completions.create(model="demo", messages=messages)
        assert whole.usage is not None
        assert whole.usage.prompt_tokens_details is not None
        assert (whole.choices[0].message.content, whole.usage.prompt_tokens_details.cached_tokens) == ("ab", 8)

        async def streamed() -> list[str | None]:
            stream: Any = await client.chat.completions.create(model="demo", messages=messages, stream=True)
            return [chunk.choices[0].delta.content async for chunk in stream]

        assert await streamed() == ["a", "b"]
        with pytest.raises(openai.NotFoundError, match="demo"):
            await client.chat.completions.create(model="gpt-9", messages=messages)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await client.chat.completions.create(model="demo", messages=messages, temperature=9)
        house.engine.dies_before, house.engine.death = 1, EngineUnavailable("died", engine="fake")
        with pytest.raises(openai.APIError, match="died"):
            await streamed()
        house.engine.dies_before, house.engine.gates[1] = -1, asyncio.Event()
        left: Any = await client.chat.completions.create(model="demo", messages=messages, stream=True)
        assert (await anext(left)).choices[0].delta.content == "a"
        house.engine.aborted.clear()
        await left.close()
        await asyncio.wait_for(house.engine.aborted.wait(), 1)
