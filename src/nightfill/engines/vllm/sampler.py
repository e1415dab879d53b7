"""Continuations of one prefix on a vLLM server, its KV from several origins."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nightfill.engines.engine import Way
from nightfill.engines.vllm.fill import stored_wish, whole
from nightfill.engines.vllm.wire import Report, Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.engines.engine import Prefix, Sampled
    from nightfill.engines.vllm.api import VllmApi

_SALT_BYTES: Final = 32


class VllmSampler:
    """Implements `engines.engine.Sampler`. The prefix is whole blocks, as they are stored.

    What the engine is to compute itself it computes under a salt that nobody else has: its own cache may hold what it
    loaded from the store before.
    """

    def __init__(
        self,
        prefix: Prefix,
        *,
        api: VllmApi,
        model: str,
        block_tokens: int,
        new_salt: Callable[[], bytes] = lambda: secrets.token_bytes(_SALT_BYTES),
    ) -> None:
        self._prefix = prefix
        self._api = api
        self._model = model
        self._block_tokens = block_tokens
        self._new_salt = new_salt
        self._computed: dict[Way, bytes] = {}
        """The salts under which the engine has computed the prefix."""

    async def sample(self, tail: Sequence[int], way: Way, *, max_tokens: int) -> Sampled:
        """See `Sampler`. A tail below the engine's own block makes its prefix hit end where the prefix does."""
        tokens = self._prefix.tokens
        wish, computed = Wish(store=False, report=True), 0
        match way:
            case Way.STORED:
                salt, wish = self._prefix.salt, stored_wish(len(tokens))
            case Way.OWN:
                salt, computed = await self._own(way, len(tokens))
            case Way.AGAIN:
                half = whole(len(tokens) // 2, self._block_tokens) or len(tokens) // 2
                salt, computed = await self._own(way, half, len(tokens))
            case Way.COLD:
                salt, wish = self._new_salt(), Wish(cold=True, store=False)
        sampled, report = await self._ask(tail, salt, wish, max_tokens)
        computed += len(tokens) + len(tail) - sampled.reused + len(sampled.tokens)
        # What came from the engine's own cache says nothing of the store.
        reused = sampled.reused if way is not Way.STORED or report is None else report.loaded
        return replace(sampled, reused=reused, computed=computed)

    async def _ask(
        self, tail: Sequence[int], salt: bytes, wish: Wish, max_tokens: int
    ) -> tuple[Sampled, Report | None]:
        prompt = (*self._prefix.tokens, *tail)
        return await self._api.sample(prompt, model=self._model, salt=salt, wish=wish, max_tokens=max_tokens)

    async def _own(self, way: Way, *lengths: int) -> tuple[bytes, int]:
        """The salt under which the prefix is computed, and the tokens that had to be for it now."""
        salt, computed = self._computed.get(way), 0
        if salt is None:
            salt = self._new_salt()
            for length in lengths:
                done = await self._api.prefill(
                    self._prefix.tokens[:length], model=self._model, salt=salt, wish=Wish(store=False)
                )
                computed += done.computed
            self._computed[way] = salt
        return salt, computed
