"""Chats under way, kept as contexts that nobody named so that the next turn's beginning can be filled. Pure, but for
reading a content with what stands before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts.context import ContextName, FillState, Message, Messages
from nightfill.contexts.placement import Front

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nightfill.contexts.context import Content, Context, Fill, Fingerprint, Tenant
    from nightfill.state.book import ContextBook

_PLACED: Final = msgspec.json.Decoder(Message)


def chat_name(fingerprint: Fingerprint) -> ContextName:
    """The name of the chat that has come so far: by what was said, so that two chats never share one."""
    return ContextName(f"chat-{fingerprint[:40]}")


def whole(content: Content, front: Content) -> Messages:
    """A chat's messages with the context's own text in front, as requests have it.

    `content` goes on from `front`. Raises BadRequest for messages that cannot stand behind it.
    """
    assert isinstance(content, Messages)
    own = [msgspec.Raw(msgspec.json.encode(message)) for message in content.messages]
    return Messages(tuple(_PLACED.decode(raw) for raw in Front(front).chat(own)))


async def whole_content(book: ContextBook, tenant: Tenant, fingerprint: Fingerprint) -> Content | None:
    """The content of a version with all that it goes on from; None when it, or that, is gone. Raises
    StateUnavailable.
    """
    content = await book.content(tenant, fingerprint)
    if not isinstance(content, Messages) or content.behind is None:
        return content
    front = await book.content(tenant, content.behind)
    return whole(content, front) if front is not None else None


@dataclass(frozen=True, slots=True)
class Doomed:
    """A chat that is to be forgotten."""

    context: Context
    why: str


def doomed(
    contexts: Sequence[Context], fills: Sequence[Fill], *, now_s: float, ttl_s: float, max_chats: int
) -> list[Doomed]:
    """The chats that have had their time: no turn for `ttl_s`, over `max_chats` of a tenant (those without a turn for
    longest), about what is no context's version any more or whose KV was wrong, and turns that later ones replaced.
    """
    chats = [context for context in contexts if context.chat is not None]
    if not chats:
        return []
    versions = {
        (context.tenant, context.name, version)
        for context in contexts
        for version in (context.current, context.distilled)
    }
    wrong = {(fill.key.tenant, str(fill.key.fingerprint)) for fill in fills if fill.drifted}
    replaced = _replaced(chats, fills)
    found: list[Doomed] = []
    left: dict[Tenant, list[Context]] = {}
    for context in chats:
        chat = context.chat
        assert chat is not None
        if now_s - context.updated_at_s > ttl_s:
            found.append(Doomed(context, "no turn for too long"))
        elif chat.context and (context.tenant, chat.context, chat.version) not in versions:
            found.append(Doomed(context, "its context has changed or gone"))
        elif chat.version and (context.tenant, chat.version) in wrong:
            found.append(Doomed(context, "the KV of its context was wrong"))
        elif (context.tenant, context.current) in replaced:
            found.append(Doomed(context, "later turns are filled"))
        else:
            left.setdefault(context.tenant, []).append(context)
    for rest in left.values():
        kept = _newest(rest, max_chats)
        found += [Doomed(context, "there are too many chats") for context in rest if context.current not in kept]
    return found


def _newest(chats: Sequence[Context], count: int) -> set[str]:
    """Fingerprints of so many chats that went on last, with their earlier turns."""
    turns = [(context, context.chat.before if context.chat is not None else ()) for context in chats]
    earlier = {mark for _, before in turns for mark in before}
    last = [(context, before) for context, before in turns if context.current not in earlier]
    last.sort(key=lambda turn: -turn[0].updated_at_s)
    return {mark for context, before in last[:count] for mark in (context.current, *before)}


def _replaced(chats: Sequence[Context], fills: Sequence[Fill]) -> set[tuple[Tenant, str]]:
    """What nobody needs now that a later turn is there: kept of each chat are the last turn, and two that are filled.

    Two, because an engine's slot may have been given the one before the last.
    """
    filled = {(fill.key.tenant, str(fill.key.fingerprint)) for fill in fills if fill.state is FillState.READY}
    found = set()
    for context in chats:
        assert context.chat is not None
        kept = int((context.tenant, str(context.current)) in filled)
        for mark in context.chat.before:
            version = (context.tenant, mark)
            if version in filled and kept < 2:
                kept += 1
            else:
                found.add(version)
    return found


def about(contexts: Iterable[Context], name: ContextName) -> list[Context]:
    """The chats about the context of that name."""
    return [context for context in contexts if context.chat is not None and context.chat.context == name]
