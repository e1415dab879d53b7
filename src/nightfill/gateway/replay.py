"""A stored reply given again: as one JSON body, or as the stream that it could have come in. Pure."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE: Final = re.compile(r"(?:\S{1,32}\s*|\s+){1,4}")
"""A few words; of scripts without blanks, so many characters."""
_CHAT: Final = "chat.completion"
_OBJECTS: Final = {_CHAT: "chat.completion.chunk"}
_PREFIXES: Final = {_CHAT: "chatcmpl-"}
_DONE: Final = b"data: [DONE]\n\n"

JsonObject = dict[str, Any]


def whole(body: bytes) -> bytes:
    """The reply under an id of its own, so that no two replies have the same. `created` stays: it says when."""
    members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    kind = msgspec.json.decode(members.get("object", b'""'), type=str)
    return msgspec.json.encode({**members, "id": _new_id(kind)})


def events(body: bytes, *, usage: bool) -> bytes:
    """The reply as server-sent events: role, content in pieces, the reason of its end, the `usage` if it is wanted."""
    reply: JsonObject = msgspec.json.decode(body)
    kind = reply.get("object", _CHAT)
    head = {name: value for name, value in reply.items() if name not in ("choices", "usage", "id", "object")}
    head = {"id": _new_id(kind), "object": _OBJECTS.get(kind, kind), **head}
    parts = [
        {**head, "choices": [{"index": choice["index"], "logprobs": None, "finish_reason": None, **part}]}
        for choice in reply["choices"]
        for part in (_chat_parts(choice) if "message" in choice else _text_parts(choice))
    ]
    if usage:
        parts.append({**head, "choices": [], "usage": reply["usage"]})
    return b"".join(b"data: " + msgspec.json.encode(part) + b"\n\n" for part in parts) + _DONE


def _chat_parts(choice: JsonObject) -> Iterator[JsonObject]:
    message = dict(choice["message"])
    content = message.pop("content", None)
    yield {"delta": {"role": message.pop("role", "assistant"), "content": ""}}
    for name, value in message.items():
        pieces = _pieces(value) if isinstance(value, str) else [value] if value is not None else []
        yield from ({"delta": {name: piece}} for piece in pieces)
    yield from ({"delta": {"content": piece}, **more} for piece, more in _logged(content or "", choice))
    yield {"delta": {}, "finish_reason": choice.get("finish_reason")}


def _text_parts(choice: JsonObject) -> Iterator[JsonObject]:
    yield from ({"text": piece, **more} for piece, more in _logged(choice["text"], choice))
    yield {"text": "", "finish_reason": choice.get("finish_reason")}


def _logged(text: str, choice: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """The pieces of a text. With log-probabilities there is one: these belong to tokens, which we no longer know."""
    if choice.get("logprobs"):
        yield text, {"logprobs": choice["logprobs"]}
    else:
        yield from ((piece, {}) for piece in _pieces(text))


def _pieces(text: str) -> list[str]:
    return _PIECE.findall(text)


def _new_id(kind: str) -> str:
    return _PREFIXES.get(kind, "cmpl-") + os.urandom(12).hex()
