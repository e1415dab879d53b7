"""The fill of one prefix in slot 0 of a llama.cpp server that does nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.engines.engine import Slice

if TYPE_CHECKING:
    from nightfill.engines.engine import Prefix
    from nightfill.engines.llama.api import LlamaApi
    from nightfill.engines.llama.transfer import Transfer

SLOT: Final = 0
SMALLEST_BATCH: Final = 64
"""Batches below this go through another attention kernel, which rounds otherwise. In larger ones a token's KV is the
same to the last bit, however a prompt is split: so a fill without smaller batches equals what a query would compute.
"""


def slice_end(upto: int, *, total: int, block_tokens: int) -> int:
    """Where a slice ends that is to reach `upto` of `total` tokens: at a whole block, or at the end, never so close to
    it that a small batch would be left.
    """
    end = -(-upto // block_tokens) * block_tokens
    return total if total - end < SMALLEST_BATCH else end


def steps(reached: int, upto: int, *, batch_tokens: int) -> tuple[int, ...]:
    """The lengths to compute one after the other from `reached` to `upto`, so that no batch is a small one."""
    rest = (upto - reached) % batch_tokens
    if 0 < rest < SMALLEST_BATCH and upto - reached > batch_tokens >= 2 * SMALLEST_BATCH:
        return upto - rest - SMALLEST_BATCH, upto
    return (upto,)


class LlamaFill:
    """Implements `engines.engine.PrefixFill`."""

    def __init__(self, prefix: Prefix, *, api: LlamaApi, transfer: Transfer, batch_tokens: int) -> None:
        self._prefix = prefix
        self._api = api
        self._transfer = transfer
        self._batch_tokens = batch_tokens
        self._reached = 0

    async def resume(self) -> int:
        """Load what the store has of the prefix; the number of tokens that need not be computed."""
        total, block_tokens = len(self._prefix.tokens), self._transfer.block_tokens
        stored = self._transfer.stored(self._prefix)
        if self._transfer.plain and 0 < total - stored < SMALLEST_BATCH and stored > block_tokens:
            stored -= block_tokens
        loaded = await self._transfer.load(SLOT, self._transfer.part(self._prefix, stored)) if stored else None
        self._reached = loaded.tokens if loaded else 0
        return self._reached

    async def discard(self) -> None:
        """Drop the prefix's blocks from all tiers, and what the slot holds."""
        self._reached = 0
        await self._transfer.drop(self._prefix)
        await self._api.slot_erase(SLOT)

    async def extend(self, upto: int) -> Slice:
        """Compute the KV of the first `upto` tokens, or a few more; see `slice_end`."""
        tokens = self._prefix.tokens
        end = slice_end(upto, total=len(tokens), block_tokens=self._transfer.block_tokens)
        computed, seconds = 0, 0.0
        for length in steps(self._reached, end, batch_tokens=self._batch_tokens):
            done = await self._api.prefill(tokens[:length], slot=SLOT, on_progress=self._note)
            self._reached = length
            computed += done.computed
            seconds += done.seconds
        return Slice(reached=end, computed=computed, seconds=seconds)

    def _note(self, processed: int, _total: int) -> None:
        self._reached = max(self._reached, processed)

    async def keep(self) -> int:
        """Store all that is computed; the number of tokens in the store, from the front. Raises KvError."""
        if not self._reached:
            return 0
        return await self._transfer.save(SLOT, self._prefix, reached=self._reached)

    async def prove(self) -> int:
        """Forget the slot, load the prefix from the store, go on by one token: the tokens that were reused."""
        await self._api.slot_erase(SLOT)
        loaded = await self._transfer.load(SLOT, self._prefix)
        if loaded.tokens < len(self._prefix.tokens):
            return loaded.tokens
        beyond = (*self._prefix.tokens, self._prefix.tokens[0])
        return (await self._api.prefill(beyond, slot=SLOT)).cached
