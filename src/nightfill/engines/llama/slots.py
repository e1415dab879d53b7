"""The slots of one llama.cpp server: who may use which, and what each still holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nightfill.errors import QueueFull

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence

    from nightfill.engines.engine import Prefix
    from nightfill.kv.key import BlockKey, Span

AFFINITY_MIN_BYTES = 256
"""Shorter common beginnings are chance: every prompt of a chat model starts with the same template."""


@dataclass(slots=True)
class Slot:
    """One slot. Only the task that holds it writes to it."""

    id: int
    generation: int = -1
    """Of the process whose memory this describes; another one means that the slot is empty."""
    spans: tuple[Span, ...] = ()
    """Filled prefix that it was given, by the keys of its blocks."""
    stamp: float = 0.0
    """Of that prefix; see `engines.engine.Prefix`."""
    text: bytes = b""
    """First bytes of the last prompt, as text."""
    said: tuple[bytes, str] | None = None
    """Salt and digest of the chat that it answered last."""
    tokens: int = 0
    """Of that chat and the reply, if so."""
    reply_tokens: int = 0
    """Of the reply alone."""
    last_used_s: float = 0.0
    kept: bool = False
    """What it holds cannot be had back from the store: other requests take it last."""
    scales: tuple[float, ...] | None = None
    """Of the adapters that its last request was under; None while that is not known."""
    computed: tuple[Prefix, int] | None = None
    """A filled prefix and how many of its tokens, from the front, were computed in it as a fill would do it."""

    def holds(self, spans: Sequence[Span]) -> int:
        """Tokens at the front of `spans` that the slot still has."""
        tokens = 0
        for ours, theirs in zip(self.spans, spans, strict=False):
            if ours.key != theirs.key:
                break
            tokens = ours.stop
        return tokens

    def forget(self, generation: int) -> None:
        """What the slot holds is of no use, in the process of this generation."""
        self.generation, self.spans, self.text, self.kept = generation, (), b"", False
        self.said, self.tokens, self.reply_tokens = None, 0, 0
        self.scales = self.computed = None

    def answered(self, prefix: Prefix | None, *, solid_tokens: int, reused: int) -> None:
        """A prompt with `prefix` in front was answered in it, of which it had the first `reused` tokens, and computed
        those up to `solid_tokens` in whole batches.
        """
        if self.computed is not None and reused < self.computed[1]:
            self.computed = None
        if prefix is not None and not reused and solid_tokens > 0:
            self.computed = prefix, min(len(prefix.tokens), solid_tokens)


def common_bytes(a: bytes, b: bytes) -> int:
    """Length of the longest common prefix, by bisection on equal halves: a few memcmp instead of a loop."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def choose(
    free: Sequence[Slot], *, spans: Sequence[Span], text: bytes, said: Collection[tuple[bytes, str]] = ()
) -> Slot:
    """The free slot that saves most: with the same chat in it, else the filled prefix, else most of the text, else
    unused for longest.

    `free` is not empty. A prefix from the store is back in milliseconds, so a slot that merely shares some text with
    the prompt is not taken for a request that comes with one.
    """
    goes_on = [slot for slot in free if slot.said in said]
    if goes_on:
        return max(goes_on, key=lambda slot: slot.tokens)
    if spans:
        best = max(free, key=lambda slot: (slot.holds(spans), -slot.last_used_s))
        if best.holds(spans):
            return best
    else:
        best = max(free, key=lambda slot: (common_bytes(slot.text, text), -slot.last_used_s))
        if common_bytes(best.text, text) >= AFFINITY_MIN_BYTES:
            return best
    return min(free, key=lambda slot: (slot.kept, bool(slot.spans or slot.text), slot.last_used_s))


class SlotTable:
    """Hands out slots, first come, first served. For one event loop; not thread-safe."""

    def __init__(self, count: int, *, max_waiting: int, clock: Callable[[], float]) -> None:
        self._slots = [Slot(id=n) for n in range(count)]
        self._free = list(self._slots)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._max_waiting = max_waiting
        self._clock = clock

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._slots) - len(self._free)

    @property
    def waiting(self) -> int:
        """Requests waiting for a slot."""
        return len(self._waiting)

    def forget_free(self) -> None:
        """Something else is about to use slots that nobody holds."""
        for slot in self._free:
            slot.forget(slot.generation)

    def held(self, *, generation: int) -> frozenset[BlockKey]:
        """Keys of the filled prefixes that slots were given, free and busy."""
        return frozenset(span.key for slot in self._slots if slot.generation == generation for span in slot.spans)

    def computed(self, *, generation: int) -> list[tuple[int, Prefix, int]]:
        """Of free slots: id, the filled prefix that was computed there, and how many tokens of it."""
        free = [slot for slot in self._free if slot.generation == generation]
        return [(slot.id, *slot.computed) for slot in free if slot.computed is not None]

    def most_held(self, spans: Sequence[Span], *, generation: int) -> int:
        """Tokens at the front of `spans` that some slot has, free or busy."""
        return max((slot.holds(spans) for slot in self._slots if slot.generation == generation), default=0)

    @contextlib.contextmanager
    def taken(self, keys: Collection[BlockKey]) -> Iterator[list[Slot]]:
        """The free slots that hold any of `keys`, which nobody else gets meanwhile."""
        slots = [slot for slot in self._free if any(span.key in keys for span in slot.spans)]
        for slot in slots:
            self._free.remove(slot)
        try:
            yield slots
        finally:
            self._free += slots
            self._wake()

    def keep(self, wanted: Sequence[Sequence[Span]], *, generation: int) -> list[int]:
        """Tokens of each of `wanted` that some slot holds; the slots that hold most of them are kept, and no others."""
        held = []
        for slot in self._slots:
            slot.kept = False
        for spans in wanted:
            best = max(self._slots, key=lambda slot: slot.holds(spans) if slot.generation == generation else 0)
            tokens = best.holds(spans) if best.generation == generation else 0
            best.kept = best.kept or tokens > 0
            held.append(tokens)
        return held

    @contextlib.asynccontextmanager
    async def acquire(
        self, *, generation: int, spans: Sequence[Span], text: bytes, said: Collection[tuple[bytes, str]] = ()
    ) -> AsyncIterator[Slot]:
        """A slot of one's own until the block is left. Raises QueueFull when too many wait already."""
        await self._wait_for_turn()
        for slot in self._free:
            if slot.generation != generation:
                slot.forget(generation)
        slot = choose(self._free, spans=spans, text=text, said=said)
        self._free.remove(slot)
        try:
            yield slot
        finally:
            slot.last_used_s = self._clock()
            self._free.append(slot)
            self._wake()

    async def _wait_for_turn(self) -> None:
        if self._free and not self._waiting:
            return
        if len(self._waiting) >= self._max_waiting:
            raise QueueFull(f"{len(self._waiting)} requests wait for {len(self._slots)} slots", retry_after_s=1)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        # Whoever was given a turn stays in the line until it runs, so that nobody who comes later overtakes it.
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.remove(turn)
            self._wake()
            raise
        self._waiting.remove(turn)

    def _wake(self) -> None:
        given = sum(turn.done() for turn in self._waiting)
        for turn in self._waiting:
            if given >= len(self._free):
                return
            if not turn.done():
                turn.set_result(None)
                given += 1
