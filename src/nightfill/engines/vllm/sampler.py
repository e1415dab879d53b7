"""Continuations of one prefix on a vLLM server, its KV from several origins."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from nightfill.engines.engine import Sampled, Way
from nightfill.engines.vllm.fill import stored_wish, whole
from nightfill.engines.vllm.wire import Report, Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.engines.engine import Prefix
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
        wish = Wish(store=False, report=True)
        match way:
            case Way.STORED:
                salt, wish = self._prefix.salt, stored_wish(len(tokens))
            case Way.OWN:
                salt = await self._own(way, len(tokens))
            case Way.AGAIN:
                half = whole(len(tokens) // 2, self._block_tokens) or len(tokens) // 2
                salt = await self._own(way, half, len(tokens))
            case Way.COLD:
                salt, wish = self._new_salt(), Wish(cold=True, store=False)
        sampled, report = await self._ask(tail, salt, wish, max_tokens)
        if way is not Way.STORED or report is None:
            return sampled
        # What came from the engine's own cache says nothing of the store.
        return Sampled(tokens=sampled.tokens, tops=sampled.tops, reused=report.loaded)

    async def _ask(
        self, tail: Sequence[int], salt: bytes, wish: Wish, max_tokens: int
    ) -> tuple[Sampled, Report | None]:
        prompt = (*self._prefix.tokens, *tail)
        return await self._api.sample(prompt, model=self._model, salt=salt, wish=wish, max_tokens=max_tokens)

    async def _own(self, way: Way, *lengths: int) -> bytes:
        salt = self._computed.get(way)
        if salt is None:
            salt = self._new_salt()
            for length in lengths:
                await self._api.prefill(
                    self._prefix.tokens[:length], model=self._model, salt=salt, wish=Wish(store=False)
                )
            self._computed[way] = salt
        return salt
