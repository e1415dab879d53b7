"""One request on two servers: one computes the prompt and stores its KV, the other loads it and answers.

Only long prompts are worth the way through the store, and only their part that nobody stored before. Where the first
server is gone or slow, the second does all of it, as it would alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from nightfill.engines.vllm.fill import whole
from nightfill.engines.vllm.wire import Wish
from nightfill.errors import EngineError
from nightfill.kv.key import spans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    import msgspec

    from nightfill.config import SplitSettings
    from nightfill.contexts.context import Content, Form
    from nightfill.engines.engine import Call, Description, Prefix, PrefixFill, Sampler
    from nightfill.engines.vllm.engine import VllmEngine
    from nightfill.engines.vllm.reply import VllmReply
    from nightfill.kv.store import Store

_LOG: Final = logging.getLogger(__name__)
_CHAT: Final = "/v1/chat/completions"
_COMPLETION: Final = "/v1/completions"


class SplitEngine:
    """Implements `engines.engine.Engine`: as `decode`, but for who computes long prompts. For one event loop.

    Does not close the `prefill` engines, which several of these may share.
    """

    def __init__(
        self,
        prefill: Sequence[VllmEngine],
        decode: VllmEngine,
        *,
        store: Store,
        block_tokens: int,
        settings: SplitSettings,
    ) -> None:
        self._prefill = tuple(prefill)
        self._decode = decode
        self._store = store
        self._block_tokens = block_tokens
        self._settings = settings

    async def describe(self) -> Description:
        """What the decoding server runs."""
        return await self._decode.describe()

    @contextlib.asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[VllmReply]:
        """Answer a request, its prompt computed elsewhere if that is worth it."""
        wish = await self._computed_elsewhere(call)
        async with self._decode.opened(call, wish) as reply:
            yield reply

    async def _computed_elsewhere(self, call: Call) -> Wish | None:
        """Have a prefilling server compute the prompt; what the decoding one waits for then. None: it is on its own."""
        if not self._prefill or not call.reuse or not _may_be_long(call, self._settings.min_tokens):
            return None
        prefill = min(self._prefill, key=lambda engine: engine.in_flight)
        try:
            description = await self._decode.describe()
            tokens = await self._decode.prompt_tokens(call.path, call.body)
            if tokens is None or len(tokens) >= description.context_length:
                return None
            cut = spans(
                tokens[: whole(len(tokens), self._block_tokens)],
                signature=description.signature,
                salt=call.salt,
                block_tokens=self._block_tokens,
            )
            stored = await asyncio.to_thread(self._store.leading, cut) * self._block_tokens
            if len(tokens) - stored < self._settings.min_tokens:
                return None
            async with asyncio.timeout(self._settings.prefill_timeout_s):
                if (await prefill.describe()).signature != description.signature:
                    _LOG.warning("%s computes KV that %s cannot use", prefill.name, description.engine)
                    return None
                await prefill.prefill(tokens, salt=call.salt)
        except TimeoutError:
            _LOG.warning("engine %s: no prefill within %g s", prefill.name, self._settings.prefill_timeout_s)
            return None
        except EngineError as exc:
            _LOG.warning("not split: %s", exc)
            return None
        return Wish(
            await_tokens=whole(len(tokens), self._block_tokens), await_s=float(self._settings.await_s), store=False
        )

    async def prefix_tokens(self, content: Content, form: Form) -> tuple[int, ...]:
        """As the decoding server."""
        return await self._decode.prefix_tokens(content, form)

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """As the decoding server."""
        return await self._decode.tokenize(text)

    def near(self, prefix: Prefix) -> None:
        """As the decoding server."""
        return self._decode.near(prefix)

    def fill(self, prefix: Prefix) -> AbstractAsyncContextManager[PrefixFill]:
        """Fill on the decoding server."""
        return self._decode.fill(prefix)

    def sampler(self, prefix: Prefix) -> AbstractAsyncContextManager[Sampler]:
        """Compare on the decoding server."""
        return self._decode.sampler(prefix)

    @property
    def freezes(self) -> bool:
        """A server elsewhere cannot be stopped where it stands."""
        return False

    def freeze(self) -> None:
        """Does nothing."""

    def thaw(self) -> None:
        """Does nothing."""

    async def healthy(self) -> bool:
        """Whether the decoding server answers; it can do without the other."""
        return await self._decode.healthy()

    async def aclose(self) -> None:
        """Close the connections to the decoding server."""
        await self._decode.aclose()


def _may_be_long(call: Call, min_tokens: int) -> bool:
    """Whether the prompt may have so many tokens, by its bytes alone: a token has one or more, and a chat template adds
    a few. Token ids take two bytes of JSON and more.
    """
    raw: msgspec.Raw | None = None
    if call.path == _CHAT:
        raw = call.body.get("messages")
    elif call.path == _COMPLETION:
        raw = call.body.get("prompt")
    return raw is not None and memoryview(raw).nbytes >= min_tokens
