"""Speculative decoding in real llama.cpp children: whatever is guessed, the answer is the one without guesses."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

from nightfill.engines.llama import demo_model, demo_vocabulary
from nightfill.engines.llama.api import LlamaApi
from nightfill.engines.llama.child_config import ChildConfig, Drafting
from nightfill.engines.llama.process import LlamaProcess
from nightfill.engines.llama.reply import counts_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nightfill.engines.engine import Tokens

pytestmark = pytest.mark.e2e

LOOP: Final = demo_model.loops(demo_vocabulary.load())[0]
REPEATED: Final = [*LOOP, *LOOP[:40]]
"""What follows is in the prompt already."""
TIE: Final = 0.05
"""Nats between two tokens of which either may be taken."""
OTHER: Final = [33 + number * number % 90 for number in range(200)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: str(demo_model.ensure(name, folder)) for name in ("tiny", "loop", "loop:1")}


@contextlib.asynccontextmanager
async def running(model: str, folder: Path, drafting: Drafting | None) -> AsyncIterator[LlamaApi]:
    config = ChildConfig(
        model=model, slot_save_path=str(folder), n_ctx=4096, n_parallel=1, n_batch=128, drafting=drafting
    )
    process = LlamaProcess(config, name="test")
    process.start()
    await process.ready(60)
    api = LlamaApi.of(process, first_byte_timeout_s=60, idle_timeout_s=60)
    try:
        yield api
    finally:
        await api.aclose()
        await process.aclose()


async def completed(api: LlamaApi, prompt: list[int], *, max_tokens: int = 250) -> tuple[str, Tokens]:
    """The greedy answer, and its counts."""
    whole = await asked(api, prompt=prompt, max_tokens=max_tokens)
    counts = counts_of(whole)
    assert counts is not None
    return str(msgspec.json.decode(whole)["choices"][0]["text"]), counts


async def asked(api: LlamaApi, **members: object) -> bytes:
    body = msgspec.json.encode({"temperature": 0, "id_slot": 0, **members})
    async with api.stream("/v1/completions", body, headers={}) as response:
        return b"".join([chunk async for chunk in response.chunks()])


NGRAM = Drafting(method="ngram")


async def test_what_was_said_before_is_guessed_and_the_answer_is_the_same(
    models: dict[str, str], tmp_path: Path
) -> None:
    async with running(models["loop"], tmp_path, None) as plain, running(models["loop"], tmp_path, NGRAM) as guessing:
        for prompt in (REPEATED, LOOP[:3]):
            expected, without = await completed(plain, prompt)
            said, counts = await completed(guessing, prompt)
            assert said == expected
            assert (without.drafted, without.accepted) == (None, None)
            assert (counts.accepted or 0) > 0.8 * (counts.drafted or 0) > 50
            assert counts.output == without.output == 250


async def test_a_model_that_knows_guesses_rightly_and_one_that_does_not_changes_nothing(
    models: dict[str, str], tmp_path: Path
) -> None:
    knows, guesses = (Drafting(method="draft", model=models[name], tokens=4) for name in ("loop", "loop:1"))
    async with (
        running(models["loop"], tmp_path, None) as plain,
        running(models["loop"], tmp_path, knows) as right,
        running(models["loop"], tmp_path, guesses) as wrong,
    ):
        expected, _ = await completed(plain, LOOP[:3], max_tokens=100)
        said, counts = await completed(right, LOOP[:3], max_tokens=100)
        assert said == expected
        assert counts.accepted == counts.drafted
        said, counts = await completed(wrong, LOOP[:3], max_tokens=100)
        assert said == expected
        assert (counts.drafted or 0) > 50
        assert counts.accepted == 0


async def test_text_that_nobody_could_guess_is_the_same_but_for_ties(models: dict[str, str], tmp_path: Path) -> None:
    # Tokens are checked several at a time, which rounds otherwise, as any other batch does.
    bad = Drafting(method="draft", model=models["loop"], tokens=4)
    async with running(models["tiny"], tmp_path, None) as plain, running(models["tiny"], tmp_path, bad) as guessing:
        for shift in range(3):
            prompt = [(token + shift) % 90 + 33 for token in OTHER]
            members: dict[str, object] = {"prompt": prompt, "max_tokens": 60, "cache_prompt": False}
            (expected,) = msgspec.json.decode(await asked(plain, logprobs=2, **members))["choices"]
            (found,) = msgspec.json.decode(await asked(guessing, **members))["choices"]
            written = ""
            for row in expected["logprobs"]["content"]:
                written += row["token"]
                if not found["text"].startswith(written):
                    first, second = (top["logprob"] for top in row["top_logprobs"])
                    assert first - second < TIE
                    break
            else:
                assert found["text"] == expected["text"]


async def test_kv_of_a_child_without_guesses_serves_one_with_them(models: dict[str, str], tmp_path: Path) -> None:
    guesses = Drafting(method="draft", model=models["loop"], tokens=4)
    async with running(models["loop"], tmp_path, None) as plain, running(models["loop"], tmp_path, guesses) as guessing:
        await plain.prefill(REPEATED, slot=0)
        await plain.slot_save(0, "kv")
        expected, _ = await completed(plain, [*REPEATED, LOOP[40]])
        await guessing.slot_restore(0, "kv")
        said, counts = await completed(guessing, [*REPEATED, LOOP[40]])
        assert said == expected
        assert (counts.reused or 0) >= len(REPEATED) - 1
        assert (counts.accepted or 0) > 100
