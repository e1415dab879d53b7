"""How fast a tier of the KV store moves blocks, beside the plainest way to move the same bytes.

Both are measured in one run and in turns of a few blocks, so that whatever else the machine does slows both. A round
moves each block once, in an order of its own; a figure is the median of the rounds, a ratio the median of the rounds'
own ratios.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, permutations
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nightfill.bench.movers import Mover

TURN_BLOCKS: Final = 8
"""Moved by one arm before it is the other's turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a run moves."""

    blocks: int
    block_bytes: int
    """As they are stored."""
    rounds: int
    """That count; one more goes before them, in which memory and caches come to what they will be."""
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """One arm's bytes per second, of each round."""

    load_bps: tuple[float, ...]
    save_bps: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFigures:
    """One tier."""

    name: str
    what: str
    """The tier in a few words."""
    raw: str
    """What it is held against; empty for nothing."""
    block_bytes: int
    blocks: int
    lookup_s: tuple[float, ...]
    """One look-up of one block that is there, each."""
    lookup_all_s: tuple[float, ...]
    """One look-up of all blocks together, each."""
    threads: Mapping[int, Mapping[str, Rates]]
    """Arms, `TIER` and where there is one `RAW`, by the number of threads that moved blocks side by side."""
    store: Rates
    """Through the whole store: sealed and verified, into memory of the caller; by one thread."""


TIER: Final = "tier"
RAW: Final = "raw"


def rates(arms: Mapping[str, Mover], work: Work, *, clock: Callable[[], float] = time.perf_counter) -> dict[str, Rates]:
    """Save and load every block with every arm, `work.rounds` times. Raises what the movers raise."""
    with ThreadPoolExecutor(work.threads, thread_name_prefix="bench") as pool:
        rounds = _Rounds(arms, work, pool, clock)
        saved, loaded = [], []
        for _ in range(1 + work.rounds):
            saved.append(rounds.save())
            loaded.append(rounds.load())
    return {
        name: Rates(
            load_bps=tuple(one[name] for one in loaded[1:]),
            save_bps=tuple(one[name] for one in saved[1:]),
        )
        for name in arms
    }


class _Rounds:
    """Rounds over all blocks, each of which gives every arm's bytes per second."""

    def __init__(
        self, arms: Mapping[str, Mover], work: Work, pool: ThreadPoolExecutor, clock: Callable[[], float]
    ) -> None:
        self._arms = arms
        self._work = work
        self._pool = pool
        self._clock = clock
        self._rng = random.Random(work.seed)  # noqa: S311 - an order, not a secret
        self._turns = cycle(permutations(arms))

    def save(self) -> dict[str, float]:
        took_s = dict.fromkeys(self._arms, 0.0)
        for part in self._parts():
            for name in next(self._turns):
                for index in part:
                    self._arms[name].forget(index)
                took_s[name] += self._timed(self._arms[name].save, part)
        return self._bps(took_s)

    def load(self) -> dict[str, float]:
        took_s = dict.fromkeys(self._arms, 0.0)
        for part in self._parts():
            for name in next(self._turns):
                took_s[name] += self._timed(self._arms[name].load, part)
        return self._bps(took_s)

    def _parts(self) -> Iterator[list[int]]:
        """All blocks, in a new order, a few at a time."""
        order = list(range(self._work.blocks))
        self._rng.shuffle(order)
        for start in range(0, len(order), TURN_BLOCKS):
            yield order[start : start + TURN_BLOCKS]

    def _timed(self, act: Callable[[int], None], part: Sequence[int]) -> float:
        began_s = self._clock()
        if self._work.threads == 1:
            for index in part:
                act(index)
        else:
            for _ in self._pool.map(act, part):
                pass
        return self._clock() - began_s

    def _bps(self, took_s: Mapping[str, float]) -> dict[str, float]:
        total_bytes = self._work.blocks * self._work.block_bytes
        return {name: total_bytes / took for name, took in took_s.items()}


def timed_each(
    act: Callable[[int], object], count: int, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, ...]:
    """Seconds that `act` took for each number below `count`, after one call that does not count."""
    act(0)
    took = []
    for index in range(count):
        began_s = clock()
        act(index)
        took.append(clock() - began_s)
    return tuple(took)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' own ratios: what slows one round slows both of its halves."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def tier_json(figures: TierFigures) -> dict[str, Any]:
    """Medians in bytes per second and seconds, least and most under `..._spread`. Raw figures are None without one."""
    one = figures.threads[1]
    more = {threads: _arms_json(arms) for threads, arms in figures.threads.items() if threads != 1}
    return {
        **_arms_json(one),
        "lookup_s": median(figures.lookup_s),
        "lookup_all_s": median(figures.lookup_all_s),
        "store_load_bps": median(figures.store.load_bps),
        "store_save_bps": median(figures.store.save_bps),
        "block_bytes": figures.block_bytes,
        "blocks": figures.blocks,
        "rounds": len(one[TIER].load_bps),
        "what": figures.what,
        "raw": figures.raw,
        "parallel": [{"threads": threads, **arms} for threads, arms in more.items()],
    }


def _arms_json(arms: Mapping[str, Rates]) -> dict[str, Any]:
    ours, raw = arms[TIER], arms.get(RAW)
    return {
        "load_bps": median(ours.load_bps),
        "save_bps": median(ours.save_bps),
        "raw_bps": median(raw.load_bps) if raw else None,
        "raw_save_bps": median(raw.save_bps) if raw else None,
        "load_ratio": ratio(ours.load_bps, raw.load_bps) if raw else None,
        "save_ratio": ratio(ours.save_bps, raw.save_bps) if raw else None,
        "load_spread": [min(ours.load_bps), max(ours.load_bps)],
        "save_spread": [min(ours.save_bps), max(ours.save_bps)],
        "raw_spread": [min(raw.load_bps), max(raw.load_bps)] if raw else None,
        "raw_save_spread": [min(raw.save_bps), max(raw.save_bps)] if raw else None,
    }
