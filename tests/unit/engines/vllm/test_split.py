from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.vllm import FakeVllm
from nightfill.config import Duration, EngineSettings, SplitSettings
from nightfill.contexts.context import Signature
from nightfill.engines.engine import Call, Prefix
from nightfill.engines.vllm.engine import VllmEngine
from nightfill.engines.vllm.split import SplitEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.kv.store import Store

BLOCK = 32
SALT = b"\x01" * 32
COMPLETION = "/v1/completions"
CHAT = "/v1/chat/completions"
TEXT = "".join(f"line {n}\n" for n in range(60))


class Pair:
    """A prefilling and a decoding server over one store, and the engine that uses both."""

    def __init__(self, store: Store, *, min_tokens: int = 100, prefill_timeout_s: float = 5) -> None:
        self.store = store
        self.first, self.second = FakeVllm(store=store), FakeVllm(store=store)
        self.settings = SplitSettings(min_tokens=min_tokens, prefill_timeout_s=Duration(prefill_timeout_s))
        self.url = ""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[SplitEngine]:
        async with self.first.running(), self.second.running():
            helper = self.engine("p1", self.url or self.first.url)
            split = SplitEngine(
                [helper],
                self.engine("d1", self.second.url),
                store=self.store,
                block_tokens=BLOCK,
                settings=self.settings,
            )
            yield split
            await split.aclose()
            await helper.aclose()

    def engine(self, name: str, url: str) -> VllmEngine:
        settings = EngineSettings(name=name, kind="vllm", url=url)
        return VllmEngine(settings, store=self.store, block_tokens=BLOCK)


@pytest.fixture
def pair(store: Store) -> Pair:
    return Pair(store)


def call(path: str = COMPLETION, *, stream: bool = False, prefix: Prefix | None = None, **members: Any) -> Call:
    body = {"prompt": TEXT, **members} if path == COMPLETION else members
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in {**body, "stream": stream}.items()}
    return Call(path=path, body=raw, stream=stream, salt=SALT, prefix=prefix)


async def answered(engine: SplitEngine, asked: Call) -> int | None:
    """The tokens that the answering server reused."""
    async with engine.open(asked) as reply:
        assert reply.status == 200
        async for _ in reply.chunks():
            pass
    return reply.tokens.reused


async def test_one_server_computes_the_prompt_and_the_other_only_its_tail(pair: Pair) -> None:
    async with pair.open() as engine:
        assert await answered(engine, call()) == len(TEXT) // BLOCK * BLOCK
    (prefilled,) = pair.first.asked(COMPLETION)
    assert prefilled["prompt"] == list(TEXT.encode())
    assert (prefilled["max_tokens"], prefilled["cache_salt"]) == (1, SALT.hex())
    assert "priority" not in prefilled, "a live request waits for it"
    (decoded,) = pair.second.asked(COMPLETION)
    assert decoded["kv_transfer_params"]["nightfill"] == {
        "await_tokens": len(TEXT) // BLOCK * BLOCK,
        "await_s": 10.0,
        "store": False,
    }
    assert pair.second.computed[-1] < BLOCK


async def test_a_chat_is_split_by_the_tokens_of_its_template(pair: Pair) -> None:
    messages = [{"role": "system", "content": TEXT}, {"role": "user", "content": "?"}]
    async with pair.open() as engine:
        await answered(engine, call(CHAT, messages=messages, stream=True))
    (prefilled,) = pair.first.asked(COMPLETION)
    assert prefilled["prompt"] == pair.first.tokens_of({"messages": messages})


async def test_token_ids_are_a_prompt_too(pair: Pair) -> None:
    async with pair.open() as engine:
        assert await answered(engine, call(prompt=list(range(200)))) == 192
    assert len(pair.first.asked(COMPLETION)) == 1


@pytest.mark.parametrize("prompt", ["short", list(range(99)), [list(range(200)), list(range(200))]])
async def test_short_prompts_and_several_at_once_go_to_one_server(pair: Pair, prompt: object) -> None:
    async with pair.open() as engine:
        assert await engine._computed_elsewhere(call(prompt=prompt)) is None
    assert not pair.first.asked(COMPLETION)


@pytest.mark.parametrize("more", [{"continue_final_message": True}, {"tool_choice": "none"}])
async def test_a_chat_whose_prompt_cannot_be_told_goes_to_one_server(pair: Pair, more: dict[str, Any]) -> None:
    async with pair.open() as engine:
        await answered(engine, call(CHAT, messages=[{"role": "user", "content": TEXT}], **more))
    assert not pair.first.asked(COMPLETION)


async def test_what_is_stored_already_is_not_computed_elsewhere(pair: Pair) -> None:
    tokens = list(TEXT.encode())
    pair.first.put(pair.first.spans_of(tokens, SALT.hex())[:-1], tokens, SALT.hex())
    async with pair.open() as engine:
        await answered(engine, call())
    assert not pair.first.asked(COMPLETION)
    assert "kv_transfer_params" not in pair.second.asked(COMPLETION)[0]


async def test_what_is_to_be_computed_anew_goes_to_one_server(pair: Pair) -> None:
    asked = call()
    async with pair.open() as engine:
        assert await answered(engine, Call(path=COMPLETION, body=asked.body, stream=False, reuse=False)) == 0
    assert not pair.first.asked(COMPLETION)


async def test_without_the_prefilling_server_the_other_does_it_all(pair: Pair) -> None:
    pair.url = "http://127.0.0.1:9"
    async with pair.open() as engine:
        assert await answered(engine, call()) == 0
        assert await engine.healthy()
    assert "kv_transfer_params" not in pair.second.asked(COMPLETION)[0]


async def test_a_slow_prefilling_server_is_not_waited_for(store: Store) -> None:
    pair = Pair(store, prefill_timeout_s=0.05)
    async with pair.open() as engine:
        pair.first.hold = asyncio.Event()
        assert await answered(engine, call()) == 0
        async with asyncio.timeout(5):
            await pair.first.aborted.wait()


async def test_a_prefilling_server_with_another_model_is_of_no_use(pair: Pair) -> None:
    pair.first.signature = Signature("8" * 64)
    async with pair.open() as engine:
        assert await answered(engine, call()) == 0
    assert not pair.first.asked(COMPLETION)


async def test_leaving_early_aborts_the_prefill(pair: Pair) -> None:
    async with pair.open() as engine:
        pair.first.hold = asyncio.Event()
        task = asyncio.create_task(answered(engine, call()))
        await pair.first.waiting.wait()
        task.cancel()
        async with asyncio.timeout(5):
            await pair.first.aborted.wait()
    assert not pair.second.asked(COMPLETION)
