"""The plainest replay of a block trace: what the simulator's stores are compared with. Shares no code with them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NEVER = 10**9


@dataclass
class Held:
    """What is known of a block that is held."""

    uses: int
    last: int
    next: int


Score = tuple[int, ...]


def longest_unused(held: Held) -> Score:
    """LRU."""
    return (held.last,)


def least_often_used(held: Held) -> Score:
    """LFU, and LRU among equals."""
    return (held.uses, held.last)


def farthest_next_use(held: Held) -> Score:
    """Belady's MIN as textbooks have it, where everything is stored; the end of a prompt before its beginning."""
    return (-held.next, -held.last)


def plain_replay(prompts: Sequence[Sequence[bytes]], capacity: int, score: Callable[[Held], Score]) -> int:
    """Hits when every missing block is stored, and what has the lowest score goes for it."""
    next_uses: list[dict[bytes, int]] = []
    coming: dict[bytes, int] = {}
    for number in reversed(range(len(prompts))):
        next_uses.insert(0, {block: coming.get(block, NEVER) for block in prompts[number]})
        coming.update(dict.fromkeys(prompts[number], number))

    held: dict[bytes, Held] = {}
    scores: list[tuple[Score, bytes]] = []
    hits = now = 0
    for number, prompt in enumerate(prompts):
        for block in prompt:
            if block not in held:
                break
            hits += 1
        for block in prompt:
            now += 1
            while block not in held and len(held) >= capacity:
                lowest, gone = heapq.heappop(scores)
                if gone in held and score(held[gone]) == lowest:
                    del held[gone]
            uses = held[block].uses if block in held else 0
            held[block] = Held(uses + 1, now, next_uses[number][block])
            heapq.heappush(scores, (score(held[block]), block))
    return hits
