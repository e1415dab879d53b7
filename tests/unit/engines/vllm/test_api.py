from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from nightfill.engines.vllm.api import VllmApi
from nightfill.engines.vllm.wire import Wish
from nightfill.errors import EngineRefused, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.vllm import FakeVllm


@pytest.fixture
async def api(server: FakeVllm) -> AsyncIterator[VllmApi]:
    api = VllmApi(server.url, engine="v1", api_key="k1")
    yield api
    await api.aclose()


async def test_it_says_what_it_is(api: VllmApi) -> None:
    assert await api.health()
    assert await api.version() == "0.32.0"
    assert [(model.id, model.max_model_len) for model in await api.models()] == [("demo", 4096)]


async def test_prompts_and_messages_become_token_ids(api: VllmApi) -> None:
    assert await api.tokenize("ab") == (97, 98)
    messages = [msgspec.Raw(b'{"role":"user","content":"x"}')]
    assert bytes(await api.tokenize_chat(messages)) == b"<user>x\n<assistant>"


async def test_a_prefill_goes_behind_other_requests_under_its_salt_and_with_the_key(
    api: VllmApi, server: FakeVllm
) -> None:
    done = await api.prefill(range(100), salt=b"\x05" * 32, wish=Wish(report=True))
    assert (done.prompt, done.cached, done.computed) == (100, 0, 100)
    assert done.report is not None
    assert done.report.salt == "05" * 32
    path, body = server.requests[-1]
    assert path == "/v1/completions"
    assert (body["max_tokens"], body["temperature"], body["cache_salt"]) == (1, 0, "05" * 32)
    assert body["priority"] > 0
    assert body["kv_transfer_params"] == {"nightfill": {"report": True}}
    assert server.headers[-1]["authorization"] == "Bearer k1"


async def test_a_refusal_has_the_servers_status_and_the_first_line_of_its_message(api: VllmApi) -> None:
    with pytest.raises(EngineRefused, match=r"engine v1: The model does not exist\.") as refused:
        await api.prefill([1, 2], model="another")
    assert refused.value.status == 404


async def test_a_cancelled_prefill_is_aborted_on_the_server(api: VllmApi, server: FakeVllm) -> None:
    server.hold = asyncio.Event()
    task = asyncio.create_task(api.prefill(range(64)))
    await server.waiting.wait()
    task.cancel()
    async with asyncio.timeout(5):
        await server.aborted.wait()


async def test_a_server_that_is_not_there_is_unavailable_and_not_healthy() -> None:
    api = VllmApi("http://127.0.0.1:9", engine="v1")
    assert not await api.health()
    with pytest.raises(EngineUnavailable):
        await api.version()
    await api.aclose()
