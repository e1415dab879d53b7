"""Makes a text shorter behind the gate: by the engine of a desk, section by section, or by choosing sentences."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts.distil_model import SECTION_TOKENS, prompt, sections_of, taken
from nightfill.contexts.distil_segments import segments_of
from nightfill.engines.engine import Call
from nightfill.errors import BadSetting, EngineRefused, NightfillError
from nightfill.kv.key import salt_of
from nightfill.sleep.answer_request import tell
from nightfill.state.answers import Answer, AnswerKey, AnswerScope, Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nightfill.contexts.context import Context
    from nightfill.contexts.distil_model import Section
    from nightfill.contexts.distil_score import Floats
    from nightfill.engines.engine import Description, Engine
    from nightfill.sleep.duty import Desk
    from nightfill.sleep.lease import HeldLease
    from nightfill.state.answers import AnswerBook

    Embed = Callable[[Sequence[str]], Floats]

EMBED_SEGMENTS: Final = 32
"""Embedded between two looks at the gate: a tenth of a second of one core."""
_SECTION_TTL_S: Final = 86400.0
"""So long a section that was written waits for the others."""
_REDUCED: Final = 1.25
"""Times the length that was asked for; what is longer after all sections is written anew once more."""
_BYTES_PER_WORD: Final = 6
_MOST_REPLY_BYTES: Final = 1 << 20
_NEVER: Final = (400, 413, 422)
"""A request that is too long for the engine, or not to its taste: asking again would not help."""
CHAT: Final = "/v1/chat/completions"


class Stop(NightfillError):
    """The worker is to end."""


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Chat(msgspec.Struct):
    choices: list[_Choice]


class Writer:
    """Shortens the texts of one context. What an engine computes is charged as soon as it is known.

    A section that was written is kept as an answer that no request can ask for, sealed and bound to the version like
    any: a job that is begun again does not pay for it again.
    """

    def __init__(
        self,
        context: Context,
        answers: AnswerBook,
        held: HeldLease,
        desk: Desk,
        *,
        embed: Embed,
        ratio: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._answers = answers
        self._held = held
        self._desk = desk
        self._embed = embed
        self._ratio = ratio
        self._clock = clock
        self._sections: Counter[str] = Counter()

    @property
    def method(self) -> str:
        """How it was done, in one word: `extractive`, `model`, or `mixed`."""
        return "mixed" if len(self._sections) > 1 else next(iter(self._sections), "extractive")

    @property
    def told(self) -> str:
        """How it was done, for people."""
        if not self._sections["model"]:
            return "by sentences of its own"
        total = self._sections.total()
        return f"by a model: {self._sections['model']} of {total} sections, the rest by sentences of their own"

    async def shortened(self, text: str) -> str:
        """`text`, about `ratio` times shorter. Raises Stop, EngineError, StateUnavailable."""
        if self._desk.engine is None:
            return await self._extracted(text, self._ratio)
        description = await self._desk.engine.describe()
        once = await self._written(text, self._ratio, self._desk.engine, description)
        excess = len(once.encode()) * self._ratio / max(len(text.encode()), 1)
        if excess <= _REDUCED:
            return once
        twice = await self._written(once, excess, self._desk.engine, description)
        return twice if len(twice) < len(once) else once

    async def _extracted(self, text: str, ratio: float) -> str:
        try:
            from nightfill.contexts.distil import distilled
            from nightfill.contexts.distil_score import needs_vectors
        except ImportError as exc:  # a worker whose engines write may be installed without it
            raise BadSetting(
                "choosing sentences needs numpy: install nightfill with its extra `answers`", param="distil.method"
            ) from exc
        segments = await asyncio.to_thread(segments_of, text)
        vectors = []
        for low in range(0, len(segments) if needs_vectors(segments) else 0, EMBED_SEGMENTS):
            await self._enter()
            pieces = [text[one.start : one.end] for one in segments[low : low + EMBED_SEGMENTS]]
            vectors.append(await asyncio.to_thread(self._embed, pieces))
        self._sections["extractive"] += 1
        return await asyncio.to_thread(distilled, text, segments, vectors, ratio=ratio)

    async def _written(self, text: str, ratio: float, engine: Engine, description: Description) -> str:
        segments = await asyncio.to_thread(segments_of, text)
        most = min(SECTION_TOKENS, description.context_length // 3)
        sections = sections_of(text, segments, ratio=ratio, most_tokens=most)
        parts = []
        for place, section in enumerate(sections, 1):
            piece = text[section.start : section.end]
            body = _body(piece, section, place=place, of=len(sections), model=description.model)
            key = _key(self._context, description, body)
            known = await self._answers.get(key)
            reply = known.body.decode() if known is not None else await self._ask(engine, body)
            if known is None:
                await self._keep(key, description, reply)
            short = taken(reply, piece, target_bytes=section.target_bytes)
            if short is not None:
                self._sections["model"] += 1
            elif len(piece.encode()) > section.target_bytes:
                short = await self._extracted(piece, ratio)
            parts.append(piece.strip() if short is None else short)
        return "\n\n".join(part for part in parts if part)

    async def _ask(self, engine: Engine, body: Mapping[str, msgspec.Raw]) -> str:
        """The engine's reply to one request, begun again when live requests cut it short. Empty when it is no text."""
        call = Call(path=CHAT, body=body, stream=False, salt=salt_of(self._context.tenant), affinity=b"distil")
        while True:
            await self._enter()
            began_s = self._clock()
            try:
                told, frozen_s = await self._desk.gate.run(engine, tell(engine, call, max_bytes=_MOST_REPLY_BYTES))
            except EngineRefused as exc:
                if exc.status not in _NEVER:
                    raise
                return ""
            took_s = max(0.0, self._clock() - began_s - frozen_s)
            self._held.computed(told.computed if told is not None else 0, took_s)
            if told is not None:
                return _text(b"".join(told.recording.pieces))

    async def _keep(self, key: AnswerKey, description: Description, reply: str) -> None:
        await self._answers.put(
            Answer(
                key=key,
                scope=AnswerScope(bytes(key)),
                tenant=self._context.tenant,
                context=self._context.name,
                fingerprint=self._context.current,
                model=description.model,
                question="",
                body=reply.encode(),
                origin=Origin.DISTIL,
                at_s=0.0,
                ttl_s=_SECTION_TTL_S,
            )
        )

    async def _enter(self) -> None:
        if not await self._desk.gate.opens():
            raise Stop


def _body(piece: str, section: Section, *, place: int, of: int, model: str) -> dict[str, msgspec.Raw]:
    words = max(30, section.target_bytes // _BYTES_PER_WORD)
    said = {
        "model": model,
        "messages": [{"role": "user", "content": prompt(piece, place=place, of=of, words=words)}],
        "temperature": 0,
        # A model that goes on for ever is cut off where its reply would not be taken any more.
        "max_tokens": 2 * words,
    }
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in said.items()}


def _key(context: Context, description: Description, body: Mapping[str, msgspec.Raw]) -> AnswerKey:
    """No request has it: what a request is known by begins otherwise."""
    said = msgspec.json.encode([context.name, context.current, description.signature, body])
    return AnswerKey(
        hashlib.blake2b(said, digest_size=32, key=salt_of(context.tenant), person=b"nightfill.distil").digest()
    )


def _text(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Chat).choices[0].message.content or ""
    except (msgspec.MsgspecError, UnicodeDecodeError, IndexError):
        return ""
