"""Continuations of one prefix in slot 0 of a llama.cpp server that does nothing else, its KV from several origins."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nightfill.engines.engine import Way
from nightfill.engines.llama.fill import SLOT, steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.engines.engine import Prefix, Sampled
    from nightfill.engines.llama.api import LlamaApi
    from nightfill.engines.llama.transfer import Transfer


class LlamaSampler:
    """Implements `engines.engine.Sampler`."""

    def __init__(self, prefix: Prefix, *, api: LlamaApi, transfer: Transfer, batch_tokens: int, trims: bool) -> None:
        """`trims`: a slot can be cut back to the prefix after it was continued."""
        self._prefix = prefix
        self._api = api
        self._transfer = transfer
        self._batch_tokens = batch_tokens
        self._trims = trims
        self._holds: Way | None = None
        """What the slot has of the prefix, and may be cut back to."""

    async def sample(self, tail: Sequence[int], way: Way, *, max_tokens: int) -> Sampled:
        """See `Sampler`."""
        tokens = tuple(self._prefix.tokens)
        held, self._holds = self._holds, None
        computed = 0
        if held is not way:
            await self._api.slot_erase(SLOT)
            match way:
                case Way.STORED:
                    await self._transfer.load(SLOT, self._prefix)
                case Way.OWN:
                    computed = await self._compute(0, len(tokens))
                case Way.AGAIN:
                    half = len(tokens) // 2
                    computed = await self._compute(0, half) + await self._compute(half, len(tokens))
                case Way.COLD:
                    pass
        sampled = await self._api.sample((*tokens, *tail), slot=SLOT, max_tokens=max_tokens)
        if self._trims and way in (Way.OWN, Way.AGAIN):
            self._holds = way
        computed += len(tokens) + len(tail) - sampled.reused + len(sampled.tokens)
        return replace(sampled, computed=computed)

    async def _compute(self, start: int, stop: int) -> int:
        # In the batches of a fill: small ones round otherwise.
        computed = 0
        for length in steps(start, stop, batch_tokens=self._batch_tokens):
            computed += (await self._api.prefill(self._prefix.tokens[:length], slot=SLOT)).computed
        return computed
