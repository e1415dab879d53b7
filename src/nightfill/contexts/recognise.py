"""Recognising a context in a request that names none but carries the whole text itself.

An `Index` is built once per change of the book and never changes. A look-up hashes the first characters of the
request's text (once per distinct probe length, which is one unless contexts are tiny) and then compares it with the
few contexts that begin so; the longest that matches wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts.context import (
    DEFAULT_OPTIONS,
    Content,
    ContextName,
    ContextOptions,
    Fingerprint,
    Form,
    Messages,
    Text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PROBE_CHARS: Final = 64
# Nesting too deep to decode is malformed as well.
_MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A current version that requests may carry, for the `forms` that it is filled in."""

    name: ContextName
    fingerprint: Fingerprint
    content: Content
    forms: tuple[Form, ...]
    user: str = ""
    """The context's."""
    options: ContextOptions = DEFAULT_OPTIONS
    """The context's."""


class _Message(msgspec.Struct):
    """What recognising needs of a request's message."""

    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Prefixes:
    """Texts, found by their first characters."""

    __slots__ = ("_lengths", "_table")

    def __init__(self) -> None:
        self._table: dict[str, list[tuple[str, int, Entry]]] = {}
        self._lengths: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._table)

    def add(self, text: str, entry: Entry, *, weight: int) -> None:
        self._table.setdefault(text[:PROBE_CHARS], []).append((text, weight, entry))
        # Heaviest first, then by name: the first that matches is the one.
        self._table[text[:PROBE_CHARS]].sort(key=lambda row: (-row[1], row[2].name))
        self._lengths = tuple(sorted({*self._lengths, min(len(text), PROBE_CHARS)}, reverse=True))

    def candidates(self, text: str) -> Iterable[tuple[str, int, Entry]]:
        for length in self._lengths:
            if length <= len(text):
                yield from self._table.get(text[:length], ())


class Index:
    """The current contexts of one tenant, by how they begin. Immutable; safe to share between threads."""

    __slots__ = ("_completions", "_conversations", "_filled", "_systems")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._systems, self._completions, self._conversations = _Prefixes(), _Prefixes(), _Prefixes()
        for entry in sorted(entries, key=lambda entry: entry.name):
            match entry.content:
                case Text(text=text):
                    if Form.CHAT in entry.forms:
                        self._systems.add(text, entry, weight=len(text))
                    if Form.COMPLETION in entry.forms:
                        self._completions.add(text, entry, weight=len(text))
                case Messages(messages=messages):
                    if Form.CHAT in entry.forms:
                        first = messages[0].content
                        self._conversations.add(first, entry, weight=sum(len(m.content) for m in messages))
        self._filled = bool(self._systems or self._completions or self._conversations)

    def __bool__(self) -> bool:
        """Whether there is anything to recognise."""
        return self._filled

    def chat(self, messages: Sequence[msgspec.Raw]) -> Entry | None:
        """The longest context that the messages already begin with, or None. Malformed messages match nothing.

        A text matches at the start of a leading system message, as `placement` would have put it; messages match when
        the request's first ones have the same roles and texts, and at least one more follows.
        """
        if not messages or (first := _decoded(messages[0])) is None:
            return None
        opening = _opening(first.content)
        if opening is None:
            return None
        found: tuple[int, Entry] | None = None
        if first.role == "system":
            for text, weight, entry in self._systems.candidates(opening):
                if (found is None or weight > found[0]) and opening.startswith(text):
                    found = weight, entry
        for text, weight, entry in self._conversations.candidates(opening):
            if (found is None or weight > found[0]) and opening == text and _begins(messages, entry.content):
                found = weight, entry
        return found[1] if found is not None else None

    def completion(self, prompt: msgspec.Raw) -> Entry | None:
        """The longest context that the prompt, a JSON string, already begins with, or None."""
        text = _opening(prompt) if _is_string(prompt) else None
        if text is None:
            return None
        for prefix, _, entry in self._completions.candidates(text):
            if text.startswith(prefix):
                return entry
        return None


def _decoded(raw: msgspec.Raw) -> _Message | None:
    try:
        return msgspec.json.decode(raw, type=_Message)
    except _MALFORMED:
        return None  # not ours to refuse: the engine says what is wrong with it


def _is_string(raw: msgspec.Raw) -> bool:
    return memoryview(raw)[0] == ord('"')


def _opening(content: msgspec.Raw) -> str | None:
    """The text that a content begins with: the string, or the first part if that is text."""
    try:
        if not _is_string(content):
            parts = msgspec.json.decode(content, type=list[msgspec.Raw])
            part = msgspec.json.decode(parts[0], type=_Part) if parts else _Part()
            return part.text if part.type == "text" else None
        return msgspec.json.decode(content, type=str)
    except _MALFORMED:
        return None  # as above


def _begins(messages: Sequence[msgspec.Raw], content: Content) -> bool:
    assert isinstance(content, Messages)
    if len(messages) <= len(content.messages):
        return False
    for raw, ours in zip(messages, content.messages, strict=False):
        theirs = _decoded(raw)
        if theirs is None or theirs.role != ours.role or _text(theirs.content) != ours.content:
            return False
    return True


def _text(content: msgspec.Raw) -> str | None:
    return _opening(content) if _is_string(content) else None
