"""Normalised contents, and the fingerprint that names a version.

Normalisation drops a byte order mark at the very start and nothing else. That mark is the encoding's signature, not a
character of the text (Unicode Standard, section 23.8), so no reader can tell the difference. Everything that one might
also be tempted to even out (line ends, trailing blanks, Unicode forms) stays: a context is put in front byte for byte,
each such change would be other tokens, and some of them (tabs in a Makefile, composed letters in a file name) mean
something.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts.context import Content, Fingerprint, Message, Messages, Text
from nightfill.errors import BadSource

if TYPE_CHECKING:
    from collections.abc import Sequence

_DOMAIN: Final = b"nightfill.content.1\0"
_BOM: Final = "\ufeff"


def normalise(data: bytes | str) -> str:
    """The text of `data`, which is UTF-8 if bytes, without a byte order mark at its start.

    Raises BadSource for what is not UTF-8 (as a string: holds a lone surrogate, which UTF-8 cannot say).
    """
    if isinstance(data, bytes):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise BadSource(f"not UTF-8 text: byte {exc.start} is 0x{data[exc.start]:02x} ({exc.reason})") from exc
    else:
        text = data
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise BadSource(f"not Unicode text: character {exc.start} is a lone surrogate") from exc
    return text.removeprefix(_BOM)


def text_content(data: bytes | str) -> Text:
    """A normalised text as content. Raises BadSource when it is empty or not UTF-8."""
    text = normalise(data)
    if not text:
        raise BadSource("the context is empty: it needs at least one character")
    return Text(text)


def messages_content(messages: Sequence[Message]) -> Messages:
    """Chat messages as content, each one's text normalised. Raises BadSource when there are none."""
    if not messages:
        raise BadSource("the context is empty: it needs at least one message")
    return Messages(tuple(Message(role=m.role, content=normalise(m.content)) for m in messages))


def decode_messages(data: bytes) -> Messages:
    """Messages from JSON: a list of `{"role": ..., "content": "..."}`, or an object with such a list as `messages`.

    Raises BadSource, which says where the JSON is not of that shape.
    """
    try:
        if data.lstrip()[:1] == b"{":
            return messages_content(msgspec.json.decode(data, type=_Wrapped).messages)
        return messages_content(msgspec.json.decode(data, type=tuple[Message, ...]))
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadSource(f'messages are not a JSON list of {{"role", "content"}} objects: {exc}') from exc


class _Wrapped(msgspec.Struct, frozen=True):
    messages: tuple[Message, ...]


def content_bytes(content: Content) -> int:
    """Bytes of the content's text as UTF-8, roles left out."""
    match content:
        case Text(text=text):
            return len(text.encode())
        case Messages(messages=messages):
            return sum(len(m.content.encode()) for m in messages)


def fingerprint_of(content: Content) -> Fingerprint:
    """SHA-256 over the kind and the exact text of a normalised content, 64 hex digits.

    Messages are hashed as compact JSON `[[role, content], ...]`, whose boundaries cannot be confused with text.
    """
    match content:
        case Text(text=text):
            digest = hashlib.sha256(_DOMAIN + b"text\0" + text.encode())
        case Messages(messages=messages):
            return fingerprints_of(messages, behind=content.behind)[-1]
    return Fingerprint(digest.hexdigest())


def fingerprints_of(messages: Sequence[Message], *, behind: Fingerprint | None = None) -> list[Fingerprint]:
    """Of the first message, the first two, and so on: each as `fingerprint_of` such a content."""
    kind = b"messages\0" if behind is None else b"behind\0" + behind.encode() + b"\0"
    digest = hashlib.sha256(_DOMAIN + kind)
    out = []
    for place, message in enumerate(messages):
        digest.update((b"," if place else b"[") + msgspec.json.encode([message.role, message.content]))
        end = digest.copy()
        end.update(b"]")
        out.append(Fingerprint(end.hexdigest()))
    return out
