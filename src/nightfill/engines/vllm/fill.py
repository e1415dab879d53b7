"""The fill of one prefix on a vLLM server: prompts that grow by whole blocks, which its plug-in stores as they come."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from nightfill.engines.engine import Slice
from nightfill.engines.vllm.wire import Wish
from nightfill.errors import KvError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nightfill.engines.engine import Prefix
    from nightfill.engines.vllm.api import VllmApi
    from nightfill.kv.key import Span
    from nightfill.kv.store import Store

_LOG: Final = logging.getLogger(__name__)
ARRIVE_S: Final = 30.0
"""So long no further block may come before those that were computed count as lost."""
_LOOK_S: Final = (0.005, 0.1)
"""Shortest and longest wait between two looks into the store."""
_LOOK_WITHIN_S: Final = 5.0
"""So long a server may look for what it is to show."""
_VERIFY_BLOCKS: Final = 8
"""Blocks read at once, so that memory stays bounded."""


def whole(tokens: int, block_tokens: int) -> int:
    """`tokens` cut to whole blocks."""
    return tokens - tokens % block_tokens


def stored_wish(tokens: int) -> Wish:
    """To see what is stored of a prompt's first tokens: past the engine's own cache, and for as long as looking takes,
    which no live request would wait for.
    """
    return Wish(fresh=True, report=True, store=False, await_tokens=tokens, await_s=_LOOK_WITHIN_S)


def slice_end(upto: int, *, total: int, unit: int) -> int:
    """Where a slice ends that is to reach `upto` of `total` tokens: at a whole unit, since no less is kept."""
    return min(total, -(-upto // unit) * unit)


class VllmFill:
    """Implements `engines.engine.PrefixFill`. `spans` are the keys of the prefix's blocks, all whole ones.

    `slice_unit`: tokens that the engine's own prefix cache keeps at least; 0 when unknown. Slices end there, not at
    blocks of the store: a live request may have to wait for one, and a block is stored once a slice completes it.
    `model`: what to ask the server for; None for what it serves.
    """

    def __init__(
        self,
        prefix: Prefix,
        *,
        api: VllmApi,
        store: Store,
        spans: Sequence[Span],
        slice_unit: int = 0,
        model: str | None = None,
        arrive_s: float = ARRIVE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._prefix = prefix
        self._api = api
        self._model = model
        self._store = store
        self._spans = tuple(spans)
        self._block_tokens = self._spans[0].stop if self._spans else 1
        self._slice_unit = slice_unit or self._block_tokens
        self._arrive_s = arrive_s
        self._clock = clock
        self._sleep = sleep
        self._reached = 0

    async def resume(self) -> int:
        """How many tokens the store has of the prefix, from the front. The engine loads them with the next slice."""
        self._reached = await self._stored()
        return self._reached

    async def discard(self) -> None:
        """Drop the blocks from all tiers, and have the server forget its copies if it offers that."""
        self._reached = 0
        await asyncio.to_thread(self._store.drop, [span.key for span in self._spans])
        if not await self._api.reset_caches():
            _LOG.warning(
                "a vLLM server may still hold KV that was wrong in the store: start it again, or with "
                "VLLM_SERVER_DEV_MODE=1, so that it can be told to forget"
            )

    async def extend(self, upto: int) -> Slice:
        """Compute the KV of the first `upto` tokens, or a few more: see `slice_end`. What is computed is stored soon
        after, also what a slice did that was cancelled.
        """
        tokens = self._prefix.tokens
        end = slice_end(upto, total=len(tokens), unit=self._slice_unit)
        done = await self._api.prefill(tokens[:end], model=self._model, salt=self._prefix.salt, wish=Wish())
        self._reached = max(self._reached, end)
        return Slice(reached=end, computed=done.computed, seconds=done.seconds)

    async def keep(self) -> int:
        """Wait until the plug-in has stored all whole blocks of what was computed; the tokens in the store, from the
        front.

        Raises KvError when blocks do not arrive.
        """
        stored, wait_s = await self._stored(), _LOOK_S[0]
        grew_s = self._clock()
        while stored < (computed := whole(self._reached, self._block_tokens)):
            if self._clock() - grew_s > self._arrive_s:
                raise KvError(
                    f"{computed - stored:,} tokens were computed, but vLLM did not store them within "
                    f"{self._arrive_s:g} s: its log says why"
                )
            await self._sleep(wait_s)
            wait_s = min(2 * wait_s, _LOOK_S[1])
            before, stored = stored, await self._stored()
            if stored > before:
                grew_s = self._clock()
        return stored

    async def prove(self) -> int:
        """Read and verify every block, then have the engine reuse them past its own cache: the tokens it reused."""
        for at in range(0, len(self._spans), _VERIFY_BLOCKS):
            batch = self._spans[at : at + _VERIFY_BLOCKS]
            blocks = await asyncio.to_thread(self._store.get_many, [span.key for span in batch], salt=self._prefix.salt)
            for span, block in zip(batch, blocks, strict=True):
                if block is None:
                    return span.start
        # One token beyond: an engine must compute at least one of a prompt.
        beyond = (*self._prefix.tokens, self._prefix.tokens[0])
        done = await self._api.prefill(
            beyond, model=self._model, salt=self._prefix.salt, wish=stored_wish(len(self._prefix.tokens))
        )
        return done.cached or 0

    async def _stored(self) -> int:
        return self._spans[count - 1].stop if (count := await self._leading()) else 0

    async def _leading(self) -> int:
        return await asyncio.to_thread(self._store.leading, self._spans)
