"""The fill of one prefix in slot 0 of a llama.cpp server that does nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.engines.engine import Slice

if TYPE_CHECKING:
    from nightfill.engines.engine import Prefix
    from nightfill.engines.llama.api import LlamaApi
    from nightfill.engines.llama.transfer import Transfer

SLOT = 0


class LlamaFill:
    """Implements `engines.engine.PrefixFill`."""

    def __init__(self, prefix: Prefix, *, api: LlamaApi, transfer: Transfer) -> None:
        self._prefix = prefix
        self._api = api
        self._transfer = transfer
        self._reached = 0

    async def resume(self) -> int:
        """Load what the store has of the prefix; the number of tokens that need not be computed."""
        stored = self._transfer.stored(self._prefix)
        loaded = await self._transfer.load(SLOT, self._transfer.part(self._prefix, stored)) if stored else None
        self._reached = loaded.tokens if loaded else 0
        return self._reached

    async def extend(self, upto: int) -> Slice:
        """Compute the KV of the first `upto` tokens (rounded up to whole blocks, at most all of them)."""
        blocks = -(-upto // self._transfer.block_tokens)
        upto = min(blocks * self._transfer.block_tokens, len(self._prefix.tokens))
        done = await self._api.prefill(self._prefix.tokens[:upto], slot=SLOT, on_progress=self._note)
        self._reached = upto
        return Slice(reached=upto, computed=done.computed, seconds=done.seconds)

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
