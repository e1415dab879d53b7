"""The demo model in the real engine: what its text is like."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from nightfill.engines.llama import demo_model
from nightfill.engines.llama.api import LlamaApi
from nightfill.engines.llama.child_config import ChildConfig
from nightfill.engines.llama.process import LlamaProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

SOURCE = "".join(
    f"def function_{n}(self, value: int = {n}) -> None:\n    return self.values[{n % 7}]\n\n" for n in range(40)
)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[LlamaApi]:
    model = demo_model.ensure("tiny", tmp_path / "models")
    process = LlamaProcess(ChildConfig(model=str(model), slot_save_path=str(tmp_path), n_ctx=8192), name="test")
    process.start()
    try:
        await process.ready(60)
        async with contextlib.aclosing(LlamaApi.of(process)) as api:
            yield api
    finally:
        await process.aclose()


async def complete(api: LlamaApi, path: str, **body: object) -> dict[str, Any]:
    async with api.stream(path, msgspec.json.encode({"stream": False, **body})) as stream:
        raw = b"".join([chunk async for chunk in stream.chunks()])
        assert stream.status == 200, raw
    reply: dict[str, Any] = msgspec.json.decode(raw)
    return reply


async def test_python_source_takes_one_token_for_more_than_three_bytes(api: LlamaApi) -> None:
    tokens = await api.tokenize(SOURCE, add_special=False, parse_special=False)
    assert len(SOURCE) / len(tokens) > 2.5  # digits, of which this source has many, are a token each
    prose = "The length of the returned list is the number of arguments that the function was called with.\n"
    assert len(prose) / len(await api.tokenize(prose, add_special=False, parse_special=False)) > 3.3


async def test_chat_is_rendered_in_turns(api: LlamaApi) -> None:
    messages = [
        msgspec.Raw(msgspec.json.encode({"role": role, "content": text}))
        for role, text in [("system", "Be short."), ("user", "Hello"), ("assistant", "Hi"), ("user", "Bye")]
    ]
    assert await api.apply_template(messages) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(await api.tokenize("<|im_start|>", add_special=False, parse_special=True)) == 1


@pytest.mark.parametrize("temperature", [0, 1])
async def test_an_answer_has_all_the_tokens_asked_for_and_is_no_repetition(api: LlamaApi, temperature: float) -> None:
    reply = await complete(
        api, "/completion", prompt=SOURCE, n_predict=300, temperature=temperature, seed=1, return_tokens=True
    )
    assert (reply["stop_type"], len(reply["tokens"])) == ("limit", 300)
    assert len(set(reply["tokens"])) > 100
    assert "\N{REPLACEMENT CHARACTER}" not in reply["content"]


async def test_one_token_far_in_front_changes_the_answer(api: LlamaApi) -> None:
    tokens = list(await api.tokenize(SOURCE, add_special=False, parse_special=False))
    first = await complete(api, "/completion", prompt=tokens, n_predict=40, temperature=0, return_tokens=True)
    tokens[37] = (tokens[37] + 1) % 6000
    second = await complete(api, "/completion", prompt=tokens, n_predict=40, temperature=0, return_tokens=True)
    assert first["tokens"] != second["tokens"]
