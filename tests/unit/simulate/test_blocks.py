from __future__ import annotations

from pathlib import Path

import pytest

from nightfill.errors import BadInput
from nightfill.kv.key import BlockKey
from nightfill.simulate.block_trace import BlockTrace, Request, read_blocks
from nightfill.simulate.blocks import POLICIES, KeptBlocks, simulate_blocks
from nightfill.simulate.queueing import Engines

DATA = Path(__file__).parent / "data"
ENGINES = Engines(count=1, prefill_tokens_per_s=100, load_bytes_per_s=1e12)


def request(at_s: float, tokens: int, letters: str) -> Request:
    blocks = tuple(BlockKey(letters[:end].encode()) for end in range(1, len(letters) + 1))
    return Request(at_s=at_s, tokens=tokens, blocks=blocks, partial=tokens % 10 != 0)


def by_policy(results: list[KeptBlocks]) -> dict[str, KeptBlocks]:
    return {one.policy: one for one in results}


def test_a_partial_last_block_is_one_block_and_as_many_tokens_as_it_has() -> None:
    trace = BlockTrace((request(0, 23, "abc"), request(100, 23, "abc"), request(200, 40, "abcd")), 10)
    found = by_policy(simulate_blocks(trace, [5000], bytes_per_token=100, engines=ENGINES))
    one = found["unlimited"]
    assert (one.hit_blocks, one.hit_ratio, one.saved_tokens, one.capacity_blocks) == (6, 0.6, 23 + 30, 5)
    assert one.bound_tokens == one.saved_tokens
    assert found["min"].bound_tokens == 53
    assert {(kept.saved_tokens, kept.background_tokens) for kept in found.values()} == {(53, 0)}


def test_what_is_hit_shortens_the_wait_and_that_of_those_behind() -> None:
    trace = BlockTrace((request(0, 100, "abcdefghij"), request(10, 100, "abcdefghij"), request(10, 100, "x")), 10)
    found = simulate_blocks(trace, [20 * 10], bytes_per_token=1, engines=ENGINES)
    assert by_policy(found)["lru"].ttft_p50_s == pytest.approx(1.0)  # 1, 0 and 1 s
    assert by_policy(found)["lru"].ttft_p99_s == pytest.approx(1.0)


def test_every_policy_is_there_for_every_size_and_stays_within_its_bound() -> None:
    trace = read_blocks(DATA / "mooncake_conversation_first_1000.jsonl.gz")
    sizes = [2**35, 2**37]
    results = simulate_blocks(trace, sizes, bytes_per_token=2**17, engines=Engines())
    assert [(one.size_bytes, one.policy) for one in results] == [(size, name) for size in sizes for name in POLICIES]
    assert [one.capacity_blocks for one in results[:: len(POLICIES)]] == [512, 2048]
    assert all(one.saved_tokens <= one.bound_tokens for one in results)
    small = by_policy(results[: len(POLICIES)])
    assert (small["lru"].lru_to_min, small["min"].lru_to_min, small["unlimited"].lru_to_min) == (0.0, 1.0, None)
    share = (small["value"].hit_blocks - small["lru"].hit_blocks) / (small["min"].hit_blocks - small["lru"].hit_blocks)
    assert small["value"].lru_to_min == pytest.approx(share)
    assert small["unlimited"].ttft_p90_s < small["lru"].ttft_p90_s


def test_a_size_that_holds_no_block_is_refused() -> None:
    trace = BlockTrace((request(0, 10, "a"),), 10)
    with pytest.raises(BadInput, match="99 bytes hold no block, which has 100 bytes"):
        simulate_blocks(trace, [1000, 99], bytes_per_token=10, engines=Engines())
