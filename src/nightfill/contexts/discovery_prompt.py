"""Prompts as discovery sees them: all that is rendered, its chain of hashes, and the context that it makes. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts.context import Content, ContextName, Fingerprint, Form, Messages, Text
from nightfill.contexts.discovery import Step

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES_PER_TOKEN: Final = 4.0
"""Of texts that no tokenizer was asked about; English and code have 3.3 to 4.5 with current models."""
BLOCK_TOKENS: Final = 256
"""How closely the end of a shared prefix is found in texts."""
_MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ELSEWHERE: Final = (
    "tools",
    "functions",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
    "response_format",
)
"""Members that chat templates render, most of them in front of the messages."""
GOES_ON: Final = "it is a chat that goes on: no other one begins so (see history filling)"
_ROLES: Final = frozenset({"system", "developer", "user", "assistant"})
# No byte of UTF-8, so that nothing a message says can look like the end of one.
_OPENS, _SAYS, _ENDS = b"\xff", b"\xfe", b"\xfd"


@dataclass(frozen=True, slots=True)
class Piece:
    """One message; or the prompt of a completion, whose role is empty."""

    role: str
    text: str
    plain: bool
    """Nothing but role and text, so that a context can say the same."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """All that an engine renders, in its order."""

    form: Form
    model: str
    pieces: tuple[Piece, ...]
    elsewhere: bytes = b""
    """What is rendered beside the messages, such as tools. A context has no such thing."""


@dataclass(frozen=True, slots=True)
class About:
    """What requests have in common that may share a prefix; all empty in traces."""

    tenant: str = ""
    model: str = ""
    form: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prefix of a prompt ends: after `whole` messages and `inside` bytes of the next one's text."""

    whole: int
    inside: int


def prompt_of(members: Mapping[str, msgspec.Raw]) -> Prompt | None:
    """The prompt of an OpenAI request, by its members `messages` or `prompt`; None where it has no text to go by:
    token ids, several prompts at once, or something else altogether.
    """
    try:
        model = msgspec.json.decode(members["model"], type=str | None) or "" if "model" in members else ""
        if "messages" in members:
            pieces = tuple(map(_piece, msgspec.json.decode(members["messages"], type=list[dict[str, msgspec.Raw]])))
            elsewhere = b"".join(
                name.encode() + _OPENS + bytes(members[name])
                for name in _ELSEWHERE
                if name in members and bytes(members[name]) not in (b"null", b"[]", b"{}")
            )
            return Prompt(Form.CHAT, model, pieces, elsewhere) if pieces else None
        if "prompt" in members:
            prompt = msgspec.json.decode(members["prompt"], type=str | list[msgspec.Raw])
            if isinstance(prompt, list):
                prompt = msgspec.json.decode(prompt[0], type=str) if len(prompt) == 1 else ""
            return Prompt(Form.COMPLETION, model, (Piece("", prompt, plain=True),)) if prompt else None
    except _MALFORMED:
        pass  # not a request that an engine would take
    return None


def chain(prompt: Prompt, secret: bytes, *, least_bytes: int, block_bytes: int) -> tuple[list[Step], list[Place]]:
    """The steps of a prompt from `least_bytes` of text on, and where each ends; equal in number.

    There is one at `least_bytes`, one every `block_bytes` after it, and one at the end of each message. Equal keys mean
    an equal prefix, roles and model included, under an equal `secret` of 32 bytes: whoever does not know it cannot find
    out by keys what others ask.
    """
    digest = hashlib.sha256(secret + prompt.model.encode("utf-8", "surrogatepass"))
    digest.update(_OPENS + prompt.form.encode() + _SAYS + prompt.elsewhere)
    steps: list[Step] = []
    places: list[Place] = []
    size, due = 0, least_bytes
    for whole, piece in enumerate(prompt.pieces):
        digest.update(_OPENS + piece.role.encode("utf-8", "surrogatepass") + _SAYS)
        data = memoryview(piece.text.encode("utf-8", "surrogatepass"))
        at = 0
        while size + len(data) - at >= due:
            digest.update(data[at : at + due - size])
            at, size = at + due - size, due
            due += block_bytes
            steps.append(Step(digest.digest()[:16], size))
            places.append(Place(whole, at))
        digest.update(data[at:])
        size += len(data) - at
        if prompt.form is Form.CHAT:
            digest.update(_ENDS)
            if size >= least_bytes:
                steps.append(Step(digest.digest()[:16], size))
                places.append(Place(whole + 1, 0))
    return steps, places


def text_bytes(prompt: Prompt) -> int:
    """Bytes of all texts of a prompt."""
    return sum(len(piece.text.encode("utf-8", "surrogatepass")) for piece in prompt.pieces)


def found_name(fingerprint: Fingerprint) -> ContextName:
    """The name of a context that nobody named, by what is in it."""
    return ContextName(f"found-{fingerprint[:8]}")


class Shared:
    """What some prompts begin with alike, message by message and then character by character."""

    def __init__(self, prompt: Prompt, place: Place | None = None) -> None:
        """place: no more than up to there; None for all of it."""
        self._prompt = self._longest = prompt
        self._whole = len(prompt.pieces)
        self._inside = ""
        if place is not None and place.whole < self._whole:
            self._whole = place.whole
            data = prompt.pieces[place.whole].text.encode("utf-8", "surrogatepass")[: place.inside]
            self._inside = data.decode("utf-8", "ignore")

    def meet(self, other: Prompt) -> None:
        """Go on with what `other` begins with too."""
        mine, theirs = self._prompt.pieces, other.pieces
        self._longest = max(self._longest, other, key=lambda prompt: len(prompt.pieces))
        same = 0
        while same < min(self._whole, len(theirs)) and mine[same] == theirs[same]:
            same += 1
        if same < self._whole:
            self._whole, self._inside = same, mine[same].text
        if same == len(theirs) or same == len(mine) or mine[same].role != theirs[same].role:
            self._inside = ""
        else:
            self._inside = self._inside[: common_length(self._inside, theirs[same].text)]

    def content(self, *, least_bytes: int) -> Content | str:
        """As a context, or why it cannot be one.

        A chat is cut after a message that others follow, or within the system message that it opens with; that and the
        prompt of a completion are cut after their last line, else word, that is shared. What is shared up to there
        must have `least_bytes`.
        """
        prompt, first = self._prompt, self._prompt.pieces[0]
        if prompt.elsewhere:
            return "its requests carry tools or other things that a context does not have"
        if prompt.form is Form.COMPLETION:
            return self._text(first.text if self._whole else None, least_bytes)
        # A context is followed by at least one message.
        whole = min(self._whole, len(self._longest.pieces) - 1)
        if first.role == "system" and first.plain and whole <= 1:
            return self._text(first.text if whole else None, least_bytes)
        if self._longest.pieces[whole].role == "assistant":
            return GOES_ON
        pieces = prompt.pieces[:whole]
        if not all(piece.plain and piece.role in _ROLES for piece in pieces):
            return "one of its messages is more than a role and a text"
        if sum(len(piece.text.encode("utf-8", "replace")) for piece in pieces) < least_bytes:
            return "it ends within a message, and what comes before that message is too short"
        messages = [{"role": piece.role, "content": piece.text} for piece in pieces]
        return msgspec.convert({"type": "messages", "messages": messages}, type=Messages)

    def _text(self, whole: str | None, least_bytes: int) -> Text | str:
        if len((self._inside if whole is None else whole).encode("utf-8", "replace")) < least_bytes:
            return "what its requests share is too short"
        return Text(_cut(self._inside) if whole is None else whole)


def _piece(members: Mapping[str, msgspec.Raw]) -> Piece:
    role = msgspec.json.decode(members.get("role", b'""'), type=str)
    raw = bytes(members.get("content", b"null"))
    if raw[:1] == b'"':
        return Piece(role, msgspec.json.decode(raw, type=str), plain=members.keys() == {"role", "content"})
    texts = [raw.decode()] if raw != b"null" else []
    if raw[:1] == b"[":
        texts = [_part(part) for part in msgspec.json.decode(raw, type=list[msgspec.Raw])]
    calls = [bytes(members[name]).decode() for name in ("tool_calls", "tool_call_id", "name") if name in members]
    return Piece(role, "".join([*texts, *calls]), plain=False)


def _part(raw: msgspec.Raw) -> str:
    part = msgspec.json.decode(raw)
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(text := part.get("text"), str):
        return text
    return bytes(raw).decode()


def _cut(text: str) -> str:
    """Up to its last line end, else blank: what comes after might become another token than it was."""
    half = len(text) // 2
    for end in (text.rfind("\n"), text.rfind(" ")):
        if end >= half:
            return text[: end + 1]
    return text


def common_length(one: str, other: str) -> int:
    """Of what two texts begin with alike, in characters."""
    most = min(len(one), len(other))
    low, step = 0, 64
    while low < most and one[low : low + step] == other[low : low + step]:
        low, step = min(low + step, most), step * 2
    high = min(low + step, most)
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
