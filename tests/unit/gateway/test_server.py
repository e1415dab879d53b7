from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import pytest

from fakes.engine import DONE, event
from fakes.house import CHAT, House
from nightfill.config import Duration
from nightfill.errors import BadSetting
from nightfill.gateway import stop_on_signals

if TYPE_CHECKING:
    from nightfill.gateway import Server

STREAM = {**CHAT, "stream": True}


async def status_of(client: aiohttp.ClientSession, path: str) -> int:
    async with client.get(path) as reply:
        await reply.read()
        return reply.status


async def begin(client: aiohttp.ClientSession) -> aiohttp.ClientResponse:
    reply = await client.post("/v1/chat/completions", json=STREAM)
    assert await reply.content.readuntil(b"\n\n") == event("a")
    return reply


async def test_draining_lets_a_running_stream_end_and_takes_no_new_work(house: House) -> None:
    house.engine.gates[1] = asyncio.Event()
    async with house.open() as server, aiohttp.ClientSession(server.url) as client:
        reply = await begin(client)
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0)  # one turn of the loop: it begins at once
        assert await status_of(client, "/readyz") == 503
        assert await status_of(client, "/healthz") == 200
        async with client.post("/v1/chat/completions", json=CHAT) as refused:
            assert refused.status == 503
            assert refused.headers["connection"] == "close"
            assert (await refused.json())["error"]["code"] == "draining"
        house.engine.gates[1].set()
        assert await reply.content.read() == event("b") + DONE
        await asyncio.wait_for(draining, 2)
    assert len(house.access.rows) == 1


async def test_a_stream_that_outlasts_the_drain_is_told_and_ended(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, drain_s=Duration(0.05))
    house.engine.gates[1] = asyncio.Event()
    async with house.open() as server, aiohttp.ClientSession(server.url) as client:
        reply = await begin(client)
        await asyncio.wait_for(server.drain(), 2)
        assert b'"code":"draining"' in await reply.content.read()
    assert house.engine.aborted.is_set()
    assert house.board.in_flight == 0


async def test_leaving_the_server_drains_it_and_frees_the_port(house: House) -> None:
    async def listening() -> Server:
        async with house.open() as server:
            return server

    server = await listening()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(server.host, server.port)


async def test_a_port_that_is_taken_is_a_setting_to_change(house: House) -> None:
    async with house.open() as server:
        other = House(settings=msgspec.structs.replace(house.settings, port=server.port))
        with pytest.raises(BadSetting, match="in use"):
            async with other.open():
                pass


async def test_a_host_that_is_no_address_is_a_setting_to_change(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, host="no.such.host.invalid")
    with pytest.raises(BadSetting, match=r"gateway\.host"):
        async with house.open():
            pass


async def test_other_hosts_than_loopback_need_keys(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, host="0.0.0.0")  # noqa: S104
    with pytest.raises(BadSetting, match="api_keys"):
        async with house.open():
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_sets_the_stop_event_only_while_asked_to(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = asyncio.Event()
    with stop_on_signals(stop):
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.wait(), 1)
    assert signal.getsignal(number) in (before, signal.SIG_DFL, signal.default_int_handler)
