"""Foreseen questions as requests: in the words in which clients would send them, so that their keys are the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.answers.question import CHAT, Bar, Ground, Question
from nightfill.answers.reply import Kept, Recording, Unfit, keep
from nightfill.contexts import Front
from nightfill.engines.engine import Call, Prefix, Tokens
from nightfill.errors import EngineRefused
from nightfill.kv.key import salt_of
from nightfill.ledger.reserve import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nightfill.answers.question import Questions
    from nightfill.config import ForeseeSettings
    from nightfill.contexts import Content, Context, Fill
    from nightfill.engines.engine import Description, Engine
    from nightfill.sleep.duty import Desk
    from nightfill.sleep.lease import HeldLease

_UNBOUNDED_TOKENS: Final = 1024
"""What is set aside for an answer of any length."""
_TEMPLATE_TOKENS: Final = 32
"""Around a question, by the model's chat template."""
MOST_CUTS: Final = 8
"""So often live requests may cut one answer short before the rest is left for another time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An engine's whole reply."""

    recording: Recording
    tokens: Tokens

    @property
    def computed(self) -> int:
        """Tokens that the engine computed for it."""
        return max(0, (self.tokens.prompt or 0) - (self.tokens.reused or 0)) + (self.tokens.output or 0)


class Requests:
    """Makes requests for chats about contexts, with the sampling members that are configured and no others."""

    def __init__(self, questions: Questions, settings: ForeseeSettings) -> None:
        self._questions = questions
        self._sampling: dict[str, int | float] = {}
        if settings.temperature is not None:
            self._sampling["temperature"] = settings.temperature
        if settings.max_tokens:
            self._sampling["max_tokens"] = settings.max_tokens

    def question(
        self, context: Context, text: str, engine: Description, *, max_tokens: int | None = None
    ) -> Question | None:
        """What a client asks who sends `text`; None where no stored answer may serve it."""
        ground = Ground(tenant=context.tenant, context=context.name, fingerprint=context.current)
        found = self._questions.of(ground, path=CHAT, members=self._members(text, max_tokens), engine=engine)
        return None if isinstance(found, Bar) else found

    def call(
        self, context: Context, content: Content, fill: Fill, text: str, model: str, *, max_tokens: int | None = None
    ) -> Call:
        """The same, for an engine, with the content in front as `fill` has it."""
        members = self._members(text, max_tokens)
        placed = Front(content).chat([_one(members["messages"])])
        salt = salt_of(context.tenant)
        return Call(
            path=CHAT,
            body={
                **members,
                "model": msgspec.Raw(msgspec.json.encode(model)),
                "messages": msgspec.Raw(b"[" + b",".join(map(bytes, placed)) + b"]"),
            },
            stream=False,
            prefix=Prefix(tokens=fill.tokens[: fill.stored_tokens], salt=salt, stamp=fill.filled_at_s),
            salt=salt,
        )

    def tokens(self, text: str, *, max_tokens: int | None = None) -> int:
        """An estimate of what a request computes beyond the context, rather too much than too little."""
        bound = max_tokens or int(self._sampling.get("max_tokens", _UNBOUNDED_TOKENS))
        return _TEMPLATE_TOKENS + len(text.encode()) // BYTES_PER_TOKEN + bound

    def _members(self, text: str, max_tokens: int | None) -> Mapping[str, msgspec.Raw]:
        said = {"messages": [{"role": "user", "content": text}], **self._sampling}
        if max_tokens is not None:
            said["max_tokens"] = max_tokens
        return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in said.items()}


def _one(messages: msgspec.Raw) -> msgspec.Raw:
    (message,) = msgspec.json.decode(messages, type=list[msgspec.Raw])
    return message


async def answered(
    held: HeldLease,
    desk: Desk,
    call: Call,
    *,
    max_bytes: int,
    clock: Callable[[], float] = time.monotonic,
) -> Kept | Unfit | None:
    """The engine's reply to a call, made behind the gate and charged to the job. None when the worker is to stop, or
    live requests left no room for it.

    Raises EngineError; EngineRefused for a status other than 200.
    """
    assert desk.engine is not None
    for _ in range(MOST_CUTS):
        if not await desk.gate.opens():
            return None
        began_s = clock()
        told, frozen_s = await desk.gate.run(desk.engine, tell(desk.engine, call, max_bytes=max_bytes))
        held.computed(told.computed if told is not None else 0, max(0.0, clock() - began_s - frozen_s))
        if told is not None:
            bounded = "max_tokens" in call.body
            return await asyncio.to_thread(keep, told.recording, told.tokens, bounded=bounded, max_bytes=max_bytes)
    return None


async def tell(engine: Engine, call: Call, *, max_bytes: int) -> Told:
    """The engine's whole reply, up to a bound. Raises EngineError; EngineRefused for a status other than 200."""
    recording = Recording(streamed=False, max_bytes=max_bytes)
    async with engine.open(call) as reply:
        chunks = reply.chunks()
        try:
            async for chunk in chunks:
                recording.add(chunk)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        if reply.status != 200:
            message = f"it answered background work with status {reply.status}"
            raise EngineRefused(message, engine="", status=reply.status)
        return Told(recording=recording, tokens=reply.tokens)
