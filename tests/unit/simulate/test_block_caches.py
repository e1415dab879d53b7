"""Each store against a replay so plain that it can be checked by eye; MIN also against every choice there is."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.plain_replay import farthest_next_use, least_often_used, longest_unused, plain_replay
from nightfill.kv.key import BlockKey
from nightfill.simulate.block_trace import Request, read_blocks
from nightfill.simulate.caches import Cache, Lfu, Lru, Unlimited
from nightfill.simulate.optimum import Optimum
from nightfill.simulate.valued import Valued

if TYPE_CHECKING:
    from collections.abc import Sequence

TRACE = read_blocks(Path(__file__).parent / "data" / "mooncake_conversation_first_1000.jsonl.gz")


def served(cache: Cache, requests: Sequence[Request]) -> int:
    return sum(map(cache.serve, requests))


PROMPTS = [request.blocks for request in TRACE.requests]


@pytest.mark.parametrize("capacity", [100, 2048, 8192, 32_768])
def test_hits_of_lru_lfu_and_min_are_those_of_a_plain_replay(capacity: int) -> None:
    assert served(Lru(capacity), TRACE.requests) == plain_replay(PROMPTS, capacity, longest_unused)
    assert served(Lfu(capacity), TRACE.requests) == plain_replay(PROMPTS, capacity, least_often_used)
    textbook = plain_replay(PROMPTS, capacity, farthest_next_use)
    # a little more than the textbook's, since what is never used again need not be stored
    assert 0 <= served(Optimum(TRACE.requests, capacity), TRACE.requests) - textbook <= 0.005 * TRACE.prompt_blocks


def test_without_a_limit_each_block_is_missed_once() -> None:
    distinct = len({block for prompt in PROMPTS for block in prompt})
    assert served(Unlimited(), TRACE.requests) == TRACE.prompt_blocks - distinct


@pytest.mark.parametrize("capacity", [512, 2048, 8192, 32_768])
def test_value_keeps_up_with_lru_and_nothing_passes_min(capacity: int) -> None:
    lru, value, best = (
        served(cache, TRACE.requests) / TRACE.prompt_blocks
        for cache in (Lru(capacity), Valued(capacity), Optimum(TRACE.requests, capacity))
    )
    assert lru - 0.002 <= value <= best
    assert served(Lfu(capacity, perfect=True), TRACE.requests) / TRACE.prompt_blocks <= best


def test_value_is_far_ahead_of_lru_where_most_does_not_fit() -> None:
    lru, value = served(Lru(2048), TRACE.requests), served(Valued(2048), TRACE.requests)
    assert value > 1.3 * lru


def requests_of(texts: Sequence[str], seconds: float = 10.0) -> list[Request]:
    """A block for each letter: its key is all letters so far."""
    return [
        Request(
            at_s=number * seconds,
            tokens=len(text),
            blocks=tuple(BlockKey(text[:end].encode()) for end in range(1, len(text) + 1)),
            partial=False,
        )
        for number, text in enumerate(texts)
    ]


def most_hits(requests: Sequence[Request], capacity: int) -> int:
    """By trying every set of blocks that could be kept after each request."""
    best: dict[frozenset[BlockKey], int] = {frozenset(): 0}
    for request in requests:
        after: dict[frozenset[BlockKey], int] = {}
        for held, hits in best.items():
            count = 0
            while count < len(request.blocks) and request.blocks[count] in held:
                count += 1
            choice = held | set(request.blocks)
            for kept in combinations(sorted(choice), min(capacity, len(choice))):
                now = frozenset(kept)
                after[now] = max(after.get(now, 0), hits + count)
        best = after
    return max(best.values())


prompts = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=7)


@settings(max_examples=150, deadline=None)
@given(prompts, st.integers(1, 5))
def test_min_has_the_most_hits_of_all_choices(texts: list[str], capacity: int) -> None:
    requests = requests_of(texts)
    assert served(Optimum(requests, capacity), requests) == most_hits(requests, capacity)


@settings(max_examples=100, deadline=None)
@given(prompts, st.integers(1, 5))
def test_no_store_passes_min(texts: list[str], capacity: int) -> None:
    requests = requests_of(texts)
    best = served(Optimum(requests, capacity), requests)
    for cache in (Lru(capacity), Lfu(capacity), Lfu(capacity, perfect=True), Valued(capacity)):
        assert served(cache, requests) <= best


def test_value_keeps_what_came_back_before_over_what_never_did() -> None:
    """A prompt that returns each minute, between many that never do: LRU loses it each time."""
    texts = [text for number in range(40) for text in ("a", *(chr(0x4E00 + 10 * number + new) for new in range(4)))]
    requests = requests_of(texts, seconds=12.0)
    assert served(Lru(4), requests) == 0
    assert served(Valued(4), requests) > 30
    assert served(Optimum(requests, 4), requests) == 39


def test_value_gives_up_a_prompts_end_before_its_beginning() -> None:
    requests = requests_of(["abcd", "abcd"])
    assert served(Valued(3), requests) == 3
    assert served(Lru(3), requests) == 0


def test_a_replay_is_the_same_each_time() -> None:
    for make in (Lru, Lfu, Valued):
        first, second = ([cache.serve(request) for request in TRACE.requests] for cache in (make(1000), make(1000)))
        assert first == second
