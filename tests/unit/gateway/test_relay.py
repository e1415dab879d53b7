from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fakes.engine import DONE, event
from nightfill.errors import EngineUnavailable

if TYPE_CHECKING:
    from fakes.house import House

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
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
