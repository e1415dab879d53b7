"""What `make vllm` makes is a real vLLM: it generates, its prefix cache works, and the tiny model notices wrong KV."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from vllm_server import TINY, TINY_OTHER, VllmServer

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def prompt(seed: int, tokens: int = 600) -> list[int]:
    """Ids of tokens that are whole words or more."""
    rng = random.Random(seed)
    return [rng.randrange(256, 6000) for _ in range(tokens)]


@pytest.fixture(scope="module")
def server(shared_vllm: Callable[..., VllmServer]) -> VllmServer:
    return shared_vllm()


def test_it_completes_and_reuses_its_prefix_cache_exactly(server: VllmServer) -> None:
    ids = prompt(1)
    cold = server.complete(ids, max_tokens=16)
    assert (cold.prompt_tokens, cold.cached_tokens, len(cold.tokens)) == (600, 0, 16)
    assert cold.text.strip()
    warm = server.complete(ids, max_tokens=16)
    assert warm.cached_tokens == 576, "all whole blocks of 32"
    again = server.complete(ids, max_tokens=16)
    assert (again.tokens, again.logprobs) == (warm.tokens, warm.logprobs)


@pytest.mark.parametrize("place", [0, 37, 300])
def test_one_other_token_far_ahead_shows_in_the_logprobs(server: VllmServer, place: int) -> None:
    ids = prompt(2)
    before = server.complete(ids)
    assert server.complete(ids).cached_tokens == 576
    ids[place] = _other(ids[place])
    after = server.complete(ids)
    assert after.cached_tokens == place // 32 * 32
    assert abs(after.logprobs[0] - before.logprobs[0]) > 1e-3


@pytest.mark.parametrize("block", [0, 1, 9])
def test_one_other_block_changes_the_answer(server: VllmServer, block: int) -> None:
    """A model that repeats itself whatever it reads would not notice wrong KV, and no test of ours would either."""
    ids = prompt(3)
    before = server.complete(ids, max_tokens=16)
    for place in range(32 * block, 32 * block + 32):
        ids[place] = _other(ids[place])
    after = server.complete(ids, max_tokens=16)
    alike = sum(one == other for one, other in zip(before.tokens, after.tokens, strict=True))
    assert alike < 8


def test_text_survives_its_tokens(server: VllmServer) -> None:
    text = "def f(self, x: int) -> None:\n    return 'h\u00e9llo w\u00f6rld'  # \u6f22\u5b57 \U0001f600 1234\n\n"
    tokens = server.tokenize(text)
    assert len(tokens) < len(text.encode())
    assert server.detokenize(tokens) == text
    assert server.tokenize("") == [], "no token is added in front"


def test_it_chats(server: VllmServer) -> None:
    reply = server.chat("What is it for?", max_tokens=8)
    assert reply["choices"][0]["message"]["content"].strip()
    assert reply["usage"]["completion_tokens"] == 8, "nothing ends an answer early"


def test_its_metrics_tell_where_prompt_tokens_came_from(server: VllmServer) -> None:
    name = "vllm:prompt_tokens_by_source_total"
    before = {source: server.metric(name, source=source) for source in ("local_compute", "local_cache_hit")}
    ids = prompt(6)
    server.complete(ids)
    server.complete(ids)
    assert server.metric(name, source="local_compute") - before["local_compute"] == 600 + 24
    assert server.metric(name, source="local_cache_hit") - before["local_cache_hit"] == 576


def test_a_server_that_cannot_start_shows_why(new_vllm: Callable[..., VllmServer]) -> None:
    server = new_vllm(flags=("--no-such-flag",))
    with pytest.raises(AssertionError, match="no-such-flag"):
        server.start()
    assert not server.running


def test_the_tiny_models_are_alike_in_all_but_their_weights() -> None:
    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for folder in (TINY, TINY_OTHER):
        assert {file.name for file in folder.iterdir()} == files
    differing = {name for name in files if (TINY / name).read_bytes() != (TINY_OTHER / name).read_bytes()}
    assert differing == {"model.safetensors"}


def _other(token: int) -> int:
    """Another token of those that prompts are made of."""
    return 256 + (token - 255) % 5744
