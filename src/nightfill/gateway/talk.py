"""The chat that a request goes on with, as far as it can be filled for the next turn. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts import Form, Message
from nightfill.contexts.fingerprint import fingerprints_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightfill.config import HistorySettings
    from nightfill.contexts import ContextName, Fingerprint
    from nightfill.contexts.context import ContextOptions
    from nightfill.gateway.ask import Ask

_MESSAGES: Final = msgspec.json.Decoder(list[Message])
_RENDERED_WITH: Final = (
    *("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls", "documents"),
    *("chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"),
    *("reasoning_effort", "enable_thinking", "mm_processor_kwargs", "add_special_tokens"),
)
"""Members that may become part of the prompt: what is filled is rendered without any."""
_LOOKED_AT: Final = 4
"""Earlier replies after which the chat is looked for. It is kept as it was after the last one, and two that are filled.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """A chat up to the newest message."""

    context: ContextName | None
    version: Fingerprint | None
    """Of that context: what is in front."""
    behind: Fingerprint | None
    """That version, where `messages` are without its text."""
    user: str
    messages: tuple[Message, ...]
    marks: tuple[Fingerprint, ...]
    """Of the first message, the first two, and so on."""

    def earlier(self) -> list[int]:
        """How many messages there were when earlier replies had been given, the newest first."""
        replied = [count for count, one in enumerate(self.messages, 1) if one.role == "assistant"]
        return [count for count in reversed(replied) if count < len(self.messages)][:_LOOKED_AT]


def is_wanted(settings: HistorySettings, ask: Ask, options: ContextOptions | None) -> bool:
    """Whether the request's chat is to be filled for its next turn; `options` are those of its context, if it has one.

    A client that keeps its KV apart, wants all computed anew, or wants nothing kept, is left alone.
    """
    if ask.form is not Form.CHAT or not ask.reuse or ask.cache_salt is not None or not ask.wishes.store:
        return False
    if options is None:
        return settings.without_context
    return settings.enabled if options.history is None else options.history


def talk_of(
    members: Mapping[str, msgspec.Raw],
    *,
    context: ContextName | None,
    version: Fingerprint | None,
    user: str,
    placed: bool,
) -> Talk | None:
    """The chat that a request for a chat's completion goes on with; None where it is more than plain messages.

    `members` are as the client sent them; `placed`: the context's text is put in front of them, and not in them.
    """
    if any(bytes(members.get(name, b"null")) not in (b"null", b"[]") for name in _RENDERED_WITH):
        return None
    if bytes(members.get("n", b"1")) not in (b"1", b"null"):
        return None
    try:
        messages = tuple(_MESSAGES.decode(members["messages"]))
    except msgspec.DecodeError:
        return None  # tools, pictures, names, parts: what a context's messages cannot carry
    behind = version if placed else None
    return Talk(
        context=context,
        version=version,
        behind=behind,
        user=user,
        messages=messages,
        marks=tuple(fingerprints_of(messages, behind=behind)),
    )
