from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.vllm import SIGNATURE, FakeVllm
from nightfill.config import EngineSettings
from nightfill.contexts.context import Form, Message, Messages, Text
from nightfill.engines.engine import Call, Prefix, Reuse
from nightfill.engines.vllm.engine import DESCRIBED_S, VllmEngine
from nightfill.errors import EngineUnavailable, EngineUnfit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.engines.vllm.reply import VllmReply
    from nightfill.kv.store import Store

BLOCK = 32
SALT = b"\x01" * 32
CHAT = "/v1/chat/completions"


def call(*, stream: bool = False, path: str = CHAT, **members: Any) -> Call:
    body: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "x" * 100}], "stream": stream}
    body |= members
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
    return Call(path=path, body=raw, stream=stream, salt=SALT)


async def read(reply: VllmReply) -> bytes:
    return b"".join([piece async for piece in reply.chunks()])


@contextlib.asynccontextmanager
async def other(server: FakeVllm, store: Store, clock: Any = None, **settings: Any) -> AsyncIterator[VllmEngine]:
    wanted = EngineSettings(name="v1", kind="vllm", url=server.url, **settings)
    timed = {"clock": clock} if clock else {}
    engine = VllmEngine(wanted, store=store, block_tokens=BLOCK, **timed)
    yield engine
    await engine.aclose()


async def test_it_says_what_the_server_and_its_plug_in_say(engine: VllmEngine) -> None:
    said = await engine.describe()
    assert (said.engine, said.model, said.signature) == ("v1", "demo", SIGNATURE)
    assert (said.context_length, said.kv_bytes_per_token, said.reuse) == (4096, 100, Reuse.TRIM)
    assert said.version == "vLLM 0.32.0"
    assert not engine.freezes


async def test_asking_again_costs_the_server_nothing_for_a_while(server: FakeVllm, store: Store) -> None:
    now_s = 0.0
    async with other(server, store, lambda: now_s) as engine:
        first = await engine.describe()
        assert await engine.describe() is first
        assert len(server.requests) == 1
        now_s = DESCRIBED_S + 1
        server.signature = type(SIGNATURE)("8" * 64)
        assert (await engine.describe()).signature == "8" * 64


async def test_a_server_without_the_plug_in_is_refused(store: Store) -> None:
    async with FakeVllm(store=None).running() as server, other(server, store) as engine:
        with pytest.raises(EngineUnfit, match="--kv-transfer-config"):
            await engine.describe()


async def test_a_server_that_keeps_kv_its_own_way_serves_and_is_not_filled(store: Store) -> None:
    async with FakeVllm(store=None).running() as server:
        wanted = EngineSettings(name="v1", kind="vllm", url=server.url)
        engine = VllmEngine(wanted, store=store, block_tokens=BLOCK, plugin=False)
        said = await engine.describe()
        assert (said.model, said.reuse) == ("demo", Reuse.NONE)
        async with engine.open(call()) as reply:
            assert reply.status == 200
            await read(reply)
        await engine.aclose()


async def test_a_server_without_the_model_is_refused(server: FakeVllm, store: Store) -> None:
    async with other(server, store, model="elsewhere") as engine:
        with pytest.raises(EngineUnfit, match="does not serve 'elsewhere'"):
            await engine.describe()


async def test_requests_may_call_the_model_by_another_name(server: FakeVllm, store: Store) -> None:
    async with other(server, store, served_model_name="mine") as engine:
        assert (await engine.describe()).model == "mine"
        async with engine.open(call(model="mine")) as reply:
            assert reply.status == 200
            await read(reply)
        assert server.requests[-1][1]["model"] == "demo"


@pytest.mark.parametrize("form", [Form.CHAT, Form.COMPLETION])
async def test_the_tokens_of_a_context_are_those_that_all_its_requests_share_in_whole_blocks(
    engine: VllmEngine, form: Form
) -> None:
    text = "".join(f"line {n}\n" for n in range(20))
    tokens = await engine.prefix_tokens(Text(text), form)
    front = b"<system>" if form is Form.CHAT else b""
    assert (front + text.encode()).startswith(bytes(tokens))
    assert 0 <= len(front + text.encode()) - len(tokens) < BLOCK
    assert len(tokens) % BLOCK == 0


async def test_messages_have_a_chats_tokens(engine: VllmEngine) -> None:
    content = Messages((Message("system", "s" * 50), Message("user", "u" * 50)))
    tokens = await engine.prefix_tokens(content, Form.CHAT)
    assert bytes(tokens).startswith(b"<system>" + b"s" * 50)
    assert len(tokens) == 96


async def test_what_is_too_short_for_a_block_has_no_tokens(engine: VllmEngine) -> None:
    assert await engine.prefix_tokens(Text("short"), Form.COMPLETION) == ()


async def test_a_request_goes_out_under_its_tenants_salt_whatever_it_says_itself(
    engine: VllmEngine, server: FakeVllm
) -> None:
    mine = call(cache_salt="02" * 32, kv_transfer_params={"nightfill": {"cold": True}}, temperature=0.5)
    async with engine.open(mine) as reply:
        await read(reply)
    body = server.requests[-1][1]
    assert body["cache_salt"] == SALT.hex()
    assert "kv_transfer_params" not in body
    assert body["temperature"] == 0.5


async def test_a_request_without_a_salt_cannot_choose_one(engine: VllmEngine, server: FakeVllm) -> None:
    bare = call(cache_salt="02" * 32)
    async with engine.open(Call(path=CHAT, body=bare.body, stream=False)) as reply:
        await read(reply)
    assert "cache_salt" not in server.requests[-1][1]


async def test_what_is_computed_anew_passes_over_all_caches_and_promises_nothing(
    engine: VllmEngine, server: FakeVllm
) -> None:
    cold = Call(path=CHAT, body=call().body, stream=False, salt=SALT, reuse=False)
    async with engine.open(cold) as reply:
        await read(reply)
    assert reply.loaded_tokens == 0
    assert server.requests[-1][1]["kv_transfer_params"] == {"nightfill": {"cold": True, "store": False}}


async def test_a_filled_prefix_is_promised_and_its_reuse_told(engine: VllmEngine, server: FakeVllm) -> None:
    asked = call()
    tokens = server.tokens_of({"messages": msgspec.json.decode(asked.body["messages"])})
    server.put(server.spans_of(tokens, SALT.hex()), tokens, SALT.hex())
    prefix = Prefix(tokens=tokens[:96], salt=SALT)
    filled = Call(path=CHAT, body=call(stream=True).body, stream=True, salt=SALT, prefix=prefix)
    async with engine.open(filled) as reply:
        assert reply.loaded_tokens == 96
        await read(reply)
    assert reply.tokens.reused == 96
    assert reply.tokens.prompt == len(tokens)


@pytest.mark.parametrize("loads_quickly", [True, False])
async def test_what_is_promised_is_what_the_server_is_asked_to_do(
    store: Store, server: FakeVllm, loads_quickly: bool
) -> None:
    server.rates = {"bytes_per_s": 1e9 if loads_quickly else 1e3, "tokens_per_s": 10_000.0}
    async with other(server, store) as engine:
        await engine.describe()
        with_prefix = dataclasses.replace(call(), prefix=Prefix(tokens=tuple(range(96)), salt=SALT))
        async with engine.open(with_prefix) as reply:
            await read(reply)
        assert reply.weighed is not None
        assert reply.weighed.load is loads_quickly
        assert reply.weighed.recompute_s == pytest.approx(96 / 10_000)
        assert reply.weighed.restore_s == pytest.approx(96 * 100 / server.rates["bytes_per_s"])
        assert reply.loaded_tokens == (96 if loads_quickly else 0)
        assert server.requests[-1][1]["kv_transfer_params"]["nightfill"]["load"] is loads_quickly


async def test_a_prompt_that_is_the_prefix_and_no_more_proves_nothing(engine: VllmEngine) -> None:
    tokens = tuple(range(64))
    body = {"prompt": msgspec.Raw(msgspec.json.encode(tokens))}
    prefix = Prefix(tokens=tokens, salt=SALT)
    for _ in range(2):
        asked = Call(path="/v1/completions", body=body, stream=False, salt=SALT, prefix=prefix)
        async with engine.open(asked) as reply:
            await read(reply)
    assert (reply.tokens.prompt, reply.tokens.reused) == (64, None)


async def test_token_counts_that_the_client_did_not_ask_for_are_read_and_not_passed_on(
    engine: VllmEngine, server: FakeVllm
) -> None:
    async with engine.open(call(stream=True)) as reply:
        body = await read(reply)
    assert server.requests[-1][1]["stream_options"] == {"include_usage": True}
    assert reply.tokens.output == 2
    assert b"usage" not in body
    assert body.count(b"data:") == 3
    assert body.endswith(b"data: [DONE]\n\n")


async def test_token_counts_that_the_client_asked_for_are_passed_on(engine: VllmEngine, server: FakeVllm) -> None:
    options = {"include_usage": True, "continuous_usage_stats": False}
    async with engine.open(call(stream=True, stream_options=options)) as reply:
        body = await read(reply)
    assert server.requests[-1][1]["stream_options"] == options
    assert b'"prompt_tokens"' in body
    assert reply.tokens.output == 2


async def test_an_answer_that_is_not_streamed_tells_its_tokens(engine: VllmEngine) -> None:
    async with engine.open(call()) as reply:
        body = await read(reply)
    assert msgspec.json.decode(body)["usage"]["prompt_tokens"] == reply.tokens.prompt
    assert reply.tokens.reused == 0


async def test_an_error_passes_through_with_its_status(engine: VllmEngine) -> None:
    async with engine.open(call(model="another", stream=True)) as reply:
        assert reply.status == 404
        assert msgspec.json.decode(await read(reply))["error"]["type"] == "NotFoundError"


async def test_a_server_that_dies_midway_is_unavailable_and_described_anew(
    engine: VllmEngine, server: FakeVllm
) -> None:
    await engine.describe()
    server.dies_after = 1
    with pytest.raises(EngineUnavailable):
        async with engine.open(call(stream=True)) as reply:
            await read(reply)
    asked = len(server.requests)
    await engine.describe()
    assert len(server.requests) == asked + 1


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_early_aborts_the_request(engine: VllmEngine, server: FakeVllm, stream: bool) -> None:
    server.hold = asyncio.Event()

    async def ask() -> None:
        async with engine.open(call(stream=stream)) as reply:
            await read(reply)

    task = asyncio.create_task(ask())
    await server.waiting.wait()
    task.cancel()
    async with asyncio.timeout(5):
        await server.aborted.wait()


async def test_a_fill_ends_up_in_the_store_and_is_proven(engine: VllmEngine, server: FakeVllm, store: Store) -> None:
    text = "".join(f"line {n}\n" for n in range(40))
    tokens = await engine.prefix_tokens(Text(text), Form.COMPLETION)
    async with engine.fill(Prefix(tokens=tokens, salt=SALT)) as fill:
        assert await fill.resume() == 0
        await fill.extend(len(tokens))
        assert await fill.keep() == len(tokens)
        server.forget()
        assert await fill.prove() == len(tokens)
    assert store.leading(server.spans_of(tokens, SALT.hex())) == len(tokens) // BLOCK


async def test_one_fill_at_a_time(engine: VllmEngine) -> None:
    prefix = Prefix(tokens=range(BLOCK), salt=SALT)
    async with engine.fill(prefix):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), engine.fill(prefix):
                pass
