"""A request's stay in a slot of llama.cpp: what it finds there, what it is given first, and what it leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.engines.engine import Reuse
from nightfill.engines.llama.fill import SMALLEST_BATCH
from nightfill.engines.llama.lora import PRIMER

if TYPE_CHECKING:
    from nightfill.engines.engine import Call, Description, Prefix, Weighed
    from nightfill.engines.llama.api import LlamaApi
    from nightfill.engines.llama.lora import Lora
    from nightfill.engines.llama.reply import LlamaReply
    from nightfill.engines.llama.slots import Slot
    from nightfill.engines.llama.transfer import Transfer
    from nightfill.engines.restores import Restores
    from nightfill.kv.key import Span

_SAYS_ADAPTERS: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Routes on which a request's own word on adapters counts."""
_LOST_TOKENS: Final = 48
"""So many tokens of a chat that is in a slot may have to be computed again rather than to load all of it."""


class Stay:
    """One request's, in the slot that it holds from before `begin` until after `end`. For one event loop."""

    def __init__(
        self,
        call: Call,
        description: Description,
        lora: Lora,
        *,
        api: LlamaApi,
        transfer: Transfer,
        restores: Restores,
    ) -> None:
        self._prefix = prefix = call.prefix if call.reuse else None
        self._description = description
        self._lora = lora
        self._api = api
        self._transfer = transfer
        self._restores = restores
        self._loads = description.reuse is not Reuse.NONE
        self._speaks_of_adapters = call.path in _SAYS_ADAPTERS
        self.spans: tuple[Span, ...] = ()
        """Of its prefix."""
        if prefix:
            self.spans = transfer.spans(prefix) if self._loads else transfer.cut(prefix)
        # What an adapter has computed is of no use to another one.
        ours = call.adapter.encode()
        self.text = ours + call.affinity
        """First bytes of its prompt."""
        self.said = [(ours + call.salt, mark) for mark in call.said] if call.reuse else []
        """Chats that it may go on from; the last is its own."""
        self.held = 0
        """Tokens at the front of its prefix that the slot has."""
        self.restore_s = 0.0
        self.weighed: Weighed | None = None
        self._chat_tokens, self._reply_tokens = 0, 0
        """Of the chat in the slot that it goes on from instead of a load, and of that chat's last reply."""

    async def begin(self, slot: Slot) -> None:
        """Make the slot fit, and load what it lacks of the prefix where that is quicker than to compute it."""
        prefix = self._prefix
        self.held = slot.holds(self.spans) if self._description.reuse is not Reuse.EXACT else 0
        await self._clear(slot)
        if prefix and self._loads and (missing := len(prefix.tokens) - self.held) > 0:
            await self._restore(slot, prefix, missing)
        slot.spans = tuple(span for span in self.spans if span.stop <= self.held)
        slot.text, slot.stamp = self.text, prefix.stamp if prefix else 0.0
        slot.said, slot.tokens, slot.reply_tokens = self.said[-1] if self.said else None, 0, 0
        slot.scales = self._lora.scales

    async def _clear(self, slot: Slot) -> None:
        """Take out what llama.cpp would wrongly go on from, or would throw out itself at the wrong time."""
        prefix, lora = self._prefix, self._lora
        if prefix and self._loads and slot.spans and slot.stamp not in (prefix.stamp, *prefix.earlier):
            # Not the fill that it was given: llama.cpp would go on from that wherever the tokens agree.
            await self._api.slot_erase(slot.id)
            slot.forget(slot.generation)
            self.held = 0
        if lora.scales and slot.scales != lora.scales and (prefix is not None or not self._speaks_of_adapters):
            # A change of adapters empties the slot: let it do so before something is restored into it, not after.
            slot.forget(slot.generation)
            self.held = 0
            await self._api.under(lora).prefill(PRIMER, slot=slot.id)

    async def _restore(self, slot: Slot, prefix: Prefix, missing: int) -> None:
        lost = self._restores.lost(slot.reply_tokens)
        if slot.said in self.said and self._description.reuse is not Reuse.EXACT and lost <= _LOST_TOKENS:
            # The chat was computed here: hardly anything is missing, though no fill was given.
            missing, self._chat_tokens, self._reply_tokens = 0, slot.tokens - slot.reply_tokens, slot.reply_tokens
        size = len(prefix.tokens) * self._description.kv_bytes_per_token
        self.weighed = self._restores.weigh(load_bytes=size, missing_tokens=missing)
        if self.weighed.load:
            await self._transfer.refresh_if_filled_again(prefix)
            # The slot's own content goes with the restore, whatever comes of it.
            slot.forget(slot.generation)
            loaded = await self._transfer.load(slot.id, prefix)
            self.held, self.restore_s = loaded.tokens, loaded.seconds
            self._restores.loaded(nbytes=loaded.bytes, seconds=loaded.seconds)

    def end(self, slot: Slot, reply: LlamaReply) -> None:
        """Note what the slot holds after the reply, as far as that came, and learn from what it took."""
        computed, seconds = reply.prefill
        self._restores.computed(tokens=computed, seconds=seconds)
        tokens = reply.tokens
        if not reply.kept():
            slot.forget(slot.generation)
        else:
            computes = not self._loads or (self.weighed is not None and not self.weighed.load)
            if computes and tokens.output is not None:
                slot.spans = self.spans  # computed by the request itself, if it was not there
            trims = self._description.reuse is Reuse.TRIM and tokens.reused is not None
            solid = (tokens.prompt or 0) - SMALLEST_BATCH
            slot.answered(self._prefix if trims else None, solid_tokens=solid, reused=tokens.reused or 0)
        slot.reply_tokens = tokens.output or 0
        slot.tokens = (tokens.prompt or 0) + slot.reply_tokens
        if self._reply_tokens and self.restore_s == 0.0 and tokens.reused is not None:
            self._restores.came_back(kept=tokens.reused - self._chat_tokens, reply_tokens=self._reply_tokens)
