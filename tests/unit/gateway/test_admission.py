from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import msgspec
import pytest

from fakes.house import CHAT, post
from nightfill.config import ByteSize, Duration
from nightfill.contexts.context import Tenant
from nightfill.errors import NotAllowed
from nightfill.gateway.admission import check_origin

if TYPE_CHECKING:
    from fakes.house import House

STREAM = {**CHAT, "stream": True}


async def raw(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def test_a_body_of_50_mb_is_refused_at_once_and_the_client_can_read_why(house: House) -> None:
    body = b'{"messages": "' + b"x" * (50 << 20) + b'"}'
    async with house.client() as client, client.post("/v1/chat/completions", data=io.BytesIO(body)) as reply:
        assert reply.status == 413
        assert (await reply.json())["error"]["code"] == "request_too_large"
    assert house.engine.calls == []


async def test_a_body_declared_too_large_is_refused_before_a_byte_of_it_came(house: House) -> None:
    async with house.open() as server:
        reader, writer = await raw(server.url)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 52428800\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1)
        assert head.startswith(b"HTTP/1.1 413")
        writer.close()


async def test_a_body_in_chunks_is_refused_once_it_is_over_the_bound(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, max_body_bytes=ByteSize(100_000))
    async with house.open() as server:
        reader, writer = await raw(server.url)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(30):
            writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1)
        assert head.startswith(b"HTTP/1.1 413")
        writer.close()


async def test_a_body_that_does_not_arrive_in_time_is_a_408(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, body_timeout_s=Duration(0.05))
    async with house.open() as server:
        reader, writer = await raw(server.url)
        writer.write(b'POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"mod')
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1)
        assert head.startswith(b"HTTP/1.1 408")
        writer.close()
    assert house.board.entered == 0


async def test_one_request_too_many_is_a_429_that_says_when_to_come_again(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, max_in_flight=1)
    house.engine.gates[1] = asyncio.Event()
    async with house.client() as client, client.post("/v1/chat/completions", json=STREAM) as first:
        await first.content.readuntil(b"\n\n")
        async with client.post("/v1/chat/completions", json=CHAT) as second:
            assert second.status == 429
            assert int(second.headers["retry-after"]) >= 1
            assert int(second.headers["retry-after-ms"]) >= 1
            assert (await second.json())["error"]["code"] == "rate_limit_exceeded"
        house.engine.gates[1].set()
        await first.read()
        async with client.post("/v1/chat/completions", json=CHAT) as third:
            assert third.status == 200
    assert house.board.in_flight == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Basic key-a"}, 401),
        ({"authorization": "Bearer key-a"}, 200),
        ({"authorization": "bearer key-b"}, 200),
        ({"x-api-key": "key-a"}, 200),
    ],
)
async def test_with_keys_only_their_owners_come_in(house: House, headers: dict[str, str], status: int) -> None:
    house.settings = msgspec.structs.replace(house.settings, api_keys={"a": "key-a", "b": "key-b"})
    async with house.client() as client:
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/nightfill/jobs")):
            async with client.request(method, path, json=CHAT, headers=headers) as reply:
                assert reply.status == status


async def test_the_access_log_has_the_tenant_whose_key_it_was(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, api_keys={"a": "key-a", "b": "key-b"})
    async with house.client() as client:
        await post(client, "/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer key-b"})
    assert [row.tenant for row in house.access.rows] == [Tenant("b")]


@pytest.mark.parametrize(
    "headers",
    [{b"host": b"evil.example:8700"}, {b"host": b"localhost:8700", b"origin": b"https://evil.example"}, {b"host": b""}],
)
def test_without_keys_pages_of_other_sites_are_refused(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(NotAllowed):
        check_origin(headers)


@pytest.mark.parametrize(
    "headers",
    [{b"host": b"localhost"}, {b"host": b"127.0.0.1:8700", b"origin": b"http://localhost:8700"}, {b"host": b"[::1]:1"}],
)
def test_without_keys_this_machine_may_ask(headers: dict[bytes, bytes]) -> None:
    check_origin(headers)


async def test_an_exception_of_ours_is_a_500_without_its_text_and_the_count_balances(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.engine.refusal = ValueError("secret")  # type: ignore[assignment]
    async with house.client() as client, client.post("/v1/chat/completions", json=CHAT) as reply:
        assert reply.status == 500
        assert "secret" not in await reply.text()
    assert house.board.in_flight == 0
    assert house.value("nightfill_faults_total", where="/v1/chat/completions") == 1
    assert "unexpected error" in caplog.text


async def test_a_large_body_for_a_path_that_does_not_exist_is_answered_too(house: House) -> None:
    async with house.client() as client, client.post("/nowhere", data=io.BytesIO(b"x" * (1 << 20))) as reply:
        assert reply.status == 404
