from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from fakes.vllm import SIGNATURE
from nightfill.engines.engine import Prefix, Way
from nightfill.engines.vllm.api import VllmApi
from nightfill.engines.vllm.sampler import VllmSampler
from nightfill.engines.vllm.wire import NAME, PARAMS
from nightfill.kv.key import spans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fakes.vllm import FakeVllm

BLOCK = 32
SALT = b"\x01" * 32
TOKENS = tuple((7 * n) % 251 for n in range(4 * BLOCK))
PREFIX = Prefix(tokens=TOKENS, salt=SALT)
TAIL = (9, 8, 7)


@pytest.fixture
async def sampler(server: FakeVllm) -> AsyncIterator[VllmSampler]:
    server.put(spans(TOKENS, signature=SIGNATURE, salt=SALT, block_tokens=BLOCK), TOKENS, SALT.hex())
    api = VllmApi(server.url, engine="v1")
    numbers = itertools.count(2)
    yield VllmSampler(PREFIX, api=api, model="demo", block_tokens=BLOCK, new_salt=lambda: bytes([next(numbers)]) * 32)
    await api.aclose()


def wishes(server: FakeVllm) -> list[tuple[int, str, dict[str, Any]]]:
    """Tokens, the salt's first digits and the wish of each request."""
    return [
        (len(body["prompt"]), body["cache_salt"][:2], body[PARAMS][NAME]) for body in server.asked("/v1/completions")
    ]


async def test_stored_kv_comes_from_outside_whatever_the_engine_holds(server: FakeVllm, sampler: VllmSampler) -> None:
    first = await sampler.sample(TAIL, Way.STORED, max_tokens=2)
    again = await sampler.sample(TAIL, Way.STORED, max_tokens=2)
    assert (first.reused, again.reused) == (len(TOKENS), len(TOKENS))
    assert (first.tokens, first.tops) == ((5, 6), ({5: -0.25, 6: -1.5}, {6: -0.5}))
    wish = {"fresh": True, "report": True, "store": False, "await_tokens": len(TOKENS), "await_s": 5.0}
    assert all(told == wish for _, _, told in wishes(server))
    server.loads = False
    assert (await sampler.sample(TAIL, Way.STORED, max_tokens=2)).reused == 0


async def test_the_engines_own_kv_is_computed_under_salts_that_nobody_else_has(
    server: FakeVllm, sampler: VllmSampler
) -> None:
    for _ in range(2):
        assert (await sampler.sample(TAIL, Way.OWN, max_tokens=2)).reused == len(TOKENS)
    assert (await sampler.sample(TAIL, Way.AGAIN, max_tokens=2)).reused == len(TOKENS)
    assert (await sampler.sample(TAIL, Way.COLD, max_tokens=2)).reused == 0
    total, asked = len(TOKENS), len(TOKENS) + len(TAIL)
    assert [(length, salt) for length, salt, _ in wishes(server)] == [
        (total, "02"), (asked, "02"), (asked, "02"),
        (total // 2, "03"), (total, "03"), (asked, "03"),
        (asked, "04"),
    ]  # fmt: skip
    assert not any(wish.get("store", True) for _, _, wish in wishes(server))
    assert wishes(server)[-1][2]["cold"] is True


async def test_what_was_computed_for_each_way_is_told(sampler: VllmSampler) -> None:
    total, asked = len(TOKENS), len(TAIL) + 2
    computed = [
        (await sampler.sample(TAIL, way, max_tokens=2)).computed
        for way in (Way.OWN, Way.OWN, Way.COLD, Way.AGAIN, Way.STORED)
    ]
    assert computed == [total + asked, asked, total + asked, total + asked, asked]
