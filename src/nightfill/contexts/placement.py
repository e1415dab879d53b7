"""Putting a context in front of a request. Pure.

What counts: with a given context, the rendered prompt begins the same whatever the request says, because that front is
what was filled. Two rules follow.

*Text* opens the first system message, byte for byte. If the request begins with a system (or developer) message of its
own, that one's text follows after a blank line in the same message; otherwise a system message is inserted. One system
message at the start is what every chat template with a system role accepts, and its role is always `system`, since
templates render `developer` differently.

*Messages* come first, as they are. The request's own system messages may not stay behind them: templates refuse a
system message in mid-chat, or move it to the front and so change the front. So their text goes into the context's last
message if that is a system message, else in front of the request's first user message. (llama.cpp does the same for
templates that have no system role.)

Nothing else of a request is touched: other messages keep their bytes, changed messages their other members. The JSON is
spliced, not decoded and encoded again, so that placing costs one copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts.context import Content, Messages, Text
from nightfill.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Nesting too deep to decode is malformed as well.
_MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_BREAK: Final = b"\\n\\n"
_SYSTEM: Final = b'"system"'
_SYSTEM_ROLES: Final = frozenset({"system", "developer"})

Members = dict[str, msgspec.Raw]


class Front:
    """A content, encoded once, to be put in front of many requests. Immutable; safe to share between threads."""

    __slots__ = ("_last_is_system", "_messages", "_text")

    def __init__(self, content: Content) -> None:
        match content:
            case Text(text=text):
                self._text: bytes | None = msgspec.json.encode(text)[1:-1]
                self._messages: tuple[msgspec.Raw, ...] = ()
                self._last_is_system = False
            case Messages(messages=messages):
                self._text = None
                self._messages = tuple(msgspec.Raw(msgspec.json.encode(m)) for m in messages)
                self._last_is_system = messages[-1].role == "system"

    def chat(self, messages: Sequence[msgspec.Raw]) -> list[msgspec.Raw]:
        """The messages of a chat request with the content in front. Raises BadRequest for malformed messages."""
        if not messages:
            raise BadRequest("messages is empty: at least one message is needed", param="messages")
        if self._text is None:
            return self._after_messages(messages)
        first = _members(messages[0], 0)
        if _role(first, 0) not in _SYSTEM_ROLES:
            return [msgspec.Raw(b'{"role":"system","content":"' + self._text + b'"}'), *messages]
        return [_with(first, role=_SYSTEM, content=_prepended(self._text, first.get("content"), 0)), *messages[1:]]

    def completion(self, prompt: msgspec.Raw) -> msgspec.Raw:
        """The prompt of a completion request, a JSON string or a list of strings, with the text in front of each.

        Raises BadRequest for prompts of token ids, and when the content is a list of messages.
        """
        if self._text is None:
            raise BadRequest("this context is a list of messages: use /v1/chat/completions", param="nightfill.context")
        raw = bytes(prompt)
        if raw[:1] == b'"':
            return msgspec.Raw(b'"' + self._text + raw[1:])
        if raw[:1] == b"[":
            parts = _items(raw, "prompt")
            if parts and all(part[:1] == b'"' for part in parts):
                return _list(b'"' + self._text + part[1:] for part in parts)
        raise BadRequest("prompt must be a string or a list of strings when a context is named", param="prompt")

    def _after_messages(self, messages: Sequence[msgspec.Raw]) -> list[msgspec.Raw]:
        leading = 0
        decoded: list[Members] = []
        for index, raw in enumerate(messages):
            members = _members(raw, index)
            if _role(members, index) not in _SYSTEM_ROLES:
                break
            decoded.append(members)
            leading += 1
        if not leading:
            return [*self._messages, *messages]
        own = _BREAK.join(_flat(members.get("content"), index) for index, members in enumerate(decoded))
        rest = list(messages[leading:])
        if self._last_is_system:
            last = _members(self._messages[-1], 0)
            merged = _with(last, role=_SYSTEM, content=bytes(last["content"])[:-1] + _BREAK + own + b'"')
            return [*self._messages[:-1], merged, *rest]
        for index, raw in enumerate(rest):
            members = _members(raw, leading + index)
            if _role(members, leading + index) == "user":
                content = _prepended(own, members.get("content"), leading + index)
                rest[index] = _with(members, role=b'"user"', content=content)
                return [*self._messages, *rest]
        return [*self._messages, msgspec.Raw(b'{"role":"user","content":"' + own + b'"}'), *rest]


def place_chat(content: Content, messages: Sequence[msgspec.Raw]) -> list[msgspec.Raw]:
    """`Front(content).chat(messages)`; keep the `Front` where many requests share a content."""
    return Front(content).chat(messages)


def place_completion(content: Content, prompt: msgspec.Raw) -> msgspec.Raw:
    """`Front(content).completion(prompt)`."""
    return Front(content).completion(prompt)


def _members(raw: msgspec.Raw, index: int) -> Members:
    try:
        return msgspec.json.decode(raw, type=Members)
    except _MALFORMED as exc:
        raise BadRequest(f"messages[{index}] is not a message object: {exc}", param=f"messages[{index}]") from exc


def _role(members: Members, index: int) -> str:
    try:
        return msgspec.json.decode(members.get("role", b"null"), type=str)
    except _MALFORMED as exc:
        raise BadRequest(f"messages[{index}].role must be a string", param=f"messages[{index}].role") from exc


def _prepended(text: bytes, content: msgspec.Raw | None, index: int) -> bytes:
    """JSON of a message's content with `text`, the inside of a JSON string, and a blank line before it."""
    raw = bytes(content) if content is not None else b"null"
    if raw[:1] == b'"':
        return b'"' + text + (_BREAK if raw != b'""' else b"") + raw[1:]
    if raw == b"null":
        return b'"' + text + b'"'
    if raw[:1] == b"[":
        parts = _items(raw, f"messages[{index}].content")
        own = b'{"type":"text","text":"' + text + (_BREAK if parts else b"") + b'"}'
        return bytes(_list([own, *parts]))
    where = f"messages[{index}].content"
    raise BadRequest(f"{where} must be a string or a list of parts", param=where)


def _items(raw: bytes, where: str) -> list[bytes]:
    try:
        return [bytes(item) for item in msgspec.json.decode(raw, type=list[msgspec.Raw])]
    except _MALFORMED as exc:
        raise BadRequest(f"{where} is not a list: {exc}", param=where) from exc


def _flat(content: msgspec.Raw | None, index: int) -> bytes:
    """The text of a system message's content as the inside of a JSON string."""
    raw = bytes(content) if content is not None else b"null"
    if raw[:1] == b'"':
        return raw[1:-1]
    if raw == b"null":
        return b""
    where = f"messages[{index}].content"
    try:
        parts = msgspec.json.decode(raw, type=list[Members])
    except _MALFORMED as exc:
        raise BadRequest(f"{where} must be a string or a list of parts", param=where) from exc
    texts = [bytes(part.get("text", b"")) for part in parts]
    if not all(text[:1] == b'"' for text in texts):
        raise BadRequest(f"{where} may hold only text parts in front of a context of messages", param=where)
    return _BREAK.join(text[1:-1] for text in texts)


def _with(members: Members, *, role: bytes, content: bytes) -> msgspec.Raw:
    """The message with its role and content replaced and every other member as it was."""
    changed = {**members, "role": msgspec.Raw(role), "content": msgspec.Raw(content)}
    return msgspec.Raw(msgspec.json.encode(changed))


def _list(items: Iterable[bytes]) -> msgspec.Raw:
    return msgspec.Raw(b"[" + b",".join(items) + b"]")
