"""Growing histories: what a chat's next turn will begin with becomes a context of its own, which is filled when idle.

A turn is noted at once and put into the book by a task of its own, so no request waits for it and none fails by it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from nightfill.answers.reply import Recording, Unfit, keep, words_of
from nightfill.contexts import (
    ContextName,
    FillKey,
    Fingerprint,
    Form,
    Message,
    Messages,
    fingerprint_of,
)
from nightfill.contexts.chats import chat_name, doomed
from nightfill.contexts.context import Chat, ContextOptions, MessagesSource
from nightfill.engines.engine import Tokens
from nightfill.errors import StateError
from nightfill.state.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nightfill.config import HistorySettings
    from nightfill.contexts import Signature, Tenant
    from nightfill.gateway.talk import Talk
    from nightfill.state.book import ContextBook

_LOG: Final = logging.getLogger(__name__)
MAX_REPLY_BYTES: Final = 256 << 10
_MOST_TURNS: Final = 256
_BYTES_PER_TOKEN: Final = 3
_ALONE: Final = ContextOptions(answers="off", foresee=False, distil=False, history=False)
"""A chat is filled, and nothing else is done for it."""
_LOOK_EVERY_S: Final = 0.5
_SWEEP_CHANGED_S: Final = 2.0
_SWEEP_S: Final = 10.0
_LIST_EVERY_S: Final = 600.0
_STATE_S: Final = 10.0
_CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A request that was answered."""

    tenant: Tenant
    talk: Talk
    filled: int
    """Of the chat's messages, so many were filled before."""
    recording: Recording


class History:
    """Keeps chats while inside its context. For one event loop.

    `signatures` are those of the engines; `on_turn` is told what became of each turn: `kept`, `short` (to be filled
    with the next), `unfit` (not a plain reply), `dropped` (too many at once, or no state). `clock` gives Unix seconds.
    """

    def __init__(
        self,
        settings: HistorySettings,
        *,
        book: ContextBook,
        signatures: Callable[[], Iterable[Signature]],
        on_turn: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._book = book
        self._signatures = signatures
        self._on_turn = on_turn
        self._clock = clock
        self._turns: deque[Turn] = deque()
        self._writer = Writer(
            self._write, name="histories", idle_s=_LOOK_EVERY_S, retry_s=_LOOK_EVERY_S, close_s=_CLOSE_S
        )
        self._known: set[tuple[Tenant, ContextName]] = set()
        """The chats."""
        self._listed_at_s = float("-inf")
        self._seen: int | None = None
        self._swept_at_s = float("-inf")

    def recording(self, talk: Talk | None, *, streamed: bool) -> Recording | None:
        """What is to be handed the pieces of a reply; None where nobody wants it."""
        return Recording(streamed=streamed, max_bytes=MAX_REPLY_BYTES) if talk is not None else None

    def note(self, turn: Turn) -> None:
        """Take a turn in. Never blocks, never raises."""
        if len(self._turns) >= _MOST_TURNS:
            self._on_turn("dropped")
            return
        self._turns.append(turn)
        self._writer.note()

    async def flush(self) -> None:
        """Put what was noted into the book. Raises StateError; the turn that it failed with is lost."""
        while self._turns:
            turn = self._turns.popleft()
            outcome = "dropped"
            try:
                async with asyncio.timeout(_STATE_S):
                    outcome = await self._put(turn)
            except TimeoutError as exc:
                raise StateError(f"a chat could not be put within {_STATE_S:g} s") from exc
            finally:
                self._on_turn(outcome)

    async def sweep(self) -> None:
        """Remove the chats that have had their time: their text at once, their KV with the store's next sweep.

        Raises StateError. Other gateways' chats are looked for now and then, in case these are gone.
        """
        if self._clock() - self._listed_at_s > _LIST_EVERY_S:
            self._known |= {(one.tenant, one.name) for one in await self._book.contexts() if one.chat is not None}
            self._listed_at_s = self._clock()
        contexts = [one for name in sorted(self._known) if (one := await self._book.get(*name)) is not None]
        self._known = {(one.tenant, one.name) for one in contexts}
        chats = [(one, one.chat) for one in contexts if one.chat is not None]
        for tenant, name in sorted({(one.tenant, ContextName(chat.context)) for one, chat in chats if chat.context}):
            if (subject := await self._book.get(tenant, name)) is not None:
                contexts.append(subject)
        versions = {(one.tenant, one.current) for one in contexts}
        versions |= {(one.tenant, Fingerprint(chat.version)) for one, chat in chats}
        fills = []
        for tenant, version in sorted(versions):
            for signature in self._signatures():
                key = FillKey(tenant=tenant, fingerprint=version, form=Form.CHAT, signature=signature)
                if (fill := await self._book.fill(key)) is not None:
                    fills.append(fill)
        settings = self._settings
        for gone in doomed(
            contexts, fills, now_s=self._clock(), ttl_s=float(settings.ttl_s), max_chats=settings.max_chats
        ):
            await self._book.delete(gone.context.tenant, gone.context.name)
            _LOG.debug("a chat is forgotten: %s", gone.why)

    async def _put(self, turn: Turn) -> str:
        talk = turn.talk
        kept = await asyncio.to_thread(
            keep, turn.recording, Tokens(prompt=0, output=0), bounded=True, max_bytes=MAX_REPLY_BYTES
        )
        words = [] if isinstance(kept, Unfit) else words_of(kept.body)
        if len(words) != 1:
            return "unfit"
        messages = (*talk.messages, Message("assistant", words[0]))
        new_bytes = sum(len(message.content) for message in messages[turn.filled :])
        if new_bytes < self._settings.min_new_tokens * _BYTES_PER_TOKEN:
            return "short"
        content = Messages(messages, behind=talk.behind)
        fingerprint = fingerprint_of(content)
        chat = Chat(
            context=talk.context or "",
            version=talk.version or "",
            before=tuple(talk.marks[count - 1] for count in talk.earlier()),
        )
        put = await self._book.put(
            tenant=turn.tenant,
            name=chat_name(fingerprint),
            source=MessagesSource(chat),
            content=content,
            fingerprint=fingerprint,
            forms=[Form.CHAT],
            ttl_s=float(self._settings.ttl_s),
            user=talk.user,
            options=_ALONE,
        )
        self._known.add((put.tenant, put.name))
        return "kept"

    async def _write(self) -> None:
        await self.flush()
        if not self._writer.closing:
            await self._sweep_if_due()

    async def _sweep_if_due(self) -> None:
        """When the book has changed, and now and then by the clock, since most have their time by age."""
        changes, since_s = self._book.changes(), self._clock() - self._swept_at_s
        if 0 <= since_s < (_SWEEP_CHANGED_S if changes != self._seen else _SWEEP_S):
            return
        async with asyncio.timeout(_STATE_S):
            await self.sweep()
        self._seen, self._swept_at_s = changes, self._clock()

    async def __aenter__(self) -> Self:
        await self._writer.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._writer.__aexit__(*error)
        for _ in self._turns:
            self._on_turn("dropped")
