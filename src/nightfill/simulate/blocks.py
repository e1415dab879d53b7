"""Which blocks to keep: a trace replayed against stores of several sizes, each by several rules of eviction.

The store sees requests in the order of their arrival, as if each had been answered before the next one came; what waits
for an engine is reckoned afterwards, from what each request had left to prefill.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nightfill.bench.stats import percentile
from nightfill.errors import BadInput
from nightfill.simulate.caches import Lfu, Lru, Unlimited
from nightfill.simulate.optimum import Optimum
from nightfill.simulate.queueing import Engines, ttfts
from nightfill.simulate.report import Outcome
from nightfill.simulate.valued import Valued

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nightfill.simulate.block_trace import BlockTrace
    from nightfill.simulate.caches import Cache

VALUE: Final = "value"
LRU: Final = "lru"
MIN: Final = "min"
UNLIMITED: Final = "unlimited"
POLICIES: Final[Mapping[str, Callable[[BlockTrace, int], Cache]]] = {
    VALUE: lambda _, capacity: Valued(capacity),
    LRU: lambda _, capacity: Lru(capacity),
    "lfu": lambda _, capacity: Lfu(capacity),
    "perfect_lfu": lambda _, capacity: Lfu(capacity, perfect=True),
    MIN: lambda trace, capacity: Optimum(trace.requests, capacity),
    UNLIMITED: lambda _trace, _capacity: Unlimited(),
}
"""The rules by name, each with how to build a store of so many blocks."""


class KeptBlocks(Outcome, frozen=True, kw_only=True):
    """What one rule achieved with one size of store.

    `hit_ratio` is hits over all blocks of all prompts, a partial last block counting as one. `saved_tokens` are those
    of the hits; `bound_tokens` is what no rule can save more of with this size (see `optimum`; unlimited: what it
    saves). Nothing is computed ahead, so `background_tokens` is 0.
    """

    size_bytes: int
    capacity_blocks: int
    hit_blocks: int
    lru_to_min: float | None
    """Share of the distance from LRU's hits to MIN's, 1 for MIN; None where there is no distance, or no limit."""
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one rule did."""

    hits: tuple[int, ...]
    """Of each request."""

    @property
    def hit_blocks(self) -> int:
        """Of all requests."""
        return sum(self.hits)


def replay(trace: BlockTrace, cache: Cache) -> Replayed:
    """Serve all requests, in their order."""
    return Replayed(tuple(map(cache.serve, trace.requests)))


def simulate_blocks(
    trace: BlockTrace, sizes_bytes: Sequence[int], *, bytes_per_token: int, engines: Engines
) -> list[KeptBlocks]:
    """Every rule with every size, sizes in the order given. Raises BadInput when a size holds no block."""
    block_bytes = trace.block_tokens * bytes_per_token
    return [
        outcome
        for size_bytes in sizes_bytes
        for outcome in _with_size(trace, size_bytes, block_bytes=block_bytes, engines=engines)
    ]


def _with_size(trace: BlockTrace, size_bytes: int, *, block_bytes: int, engines: Engines) -> Iterator[KeptBlocks]:
    capacity = size_bytes // block_bytes
    if not capacity:
        raise BadInput(f"{size_bytes} bytes hold no block, which has {block_bytes} bytes", param="sizes")
    replayed = {name: replay(trace, make(trace, capacity)) for name, make in POLICIES.items()}
    saved = {name: _saved(trace, one) for name, one in replayed.items()}
    hits = {name: one.hit_blocks for name, one in replayed.items()}
    bound = min(sum(saved[UNLIMITED]), hits[MIN] * trace.block_tokens)
    distance = hits[MIN] - hits[LRU]
    for name, one in replayed.items():
        limited = name != UNLIMITED
        yield KeptBlocks(
            policy=name,
            saved_tokens=sum(saved[name]),
            bound_tokens=bound if limited else sum(saved[name]),
            hit_ratio=hits[name] / trace.prompt_blocks,
            background_tokens=0,
            size_bytes=size_bytes,
            capacity_blocks=capacity,
            hit_blocks=hits[name],
            lru_to_min=(hits[name] - hits[LRU]) / distance if limited and distance else None,
            **_waits(trace, one, saved[name], block_bytes=block_bytes, engines=engines),
        )


def _saved(trace: BlockTrace, replayed: Replayed) -> list[int]:
    """Tokens of each request that it need not prefill."""
    return [
        min(hits * trace.block_tokens, request.tokens)
        for hits, request in zip(replayed.hits, trace.requests, strict=True)
    ]


def _waits(
    trace: BlockTrace, replayed: Replayed, saved: Sequence[int], *, block_bytes: int, engines: Engines
) -> dict[str, Any]:
    jobs = (
        (request.at_s, engines.busy_s(tokens=request.tokens - spared, load_bytes=hits * block_bytes))
        for request, hits, spared in zip(trace.requests, replayed.hits, saved, strict=True)
    )
    at = partial(percentile, sorted(ttfts(jobs, engines.count)))
    return {"ttft_p50_s": at(50), "ttft_p90_s": at(90), "ttft_p99_s": at(99)}
