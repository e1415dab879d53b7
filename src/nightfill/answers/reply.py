"""A reply on its way into store: what of it goes by, and whether it is worth keeping. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.engines.aggregate import Aggregate
from nightfill.engines.sse import payloads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.engines.engine import Tokens

JsonObject = dict[str, Any]

_DONE: Final = b"[DONE]"
_OF_ITS_MAKING: Final = ("timings", "prompt_progress", "kv_transfer_params", "prompt_logprobs")
"""Members that speak of one computation, not of the answer."""
_STREAM_FACTOR: Final = 16
"""A stream is so much longer than what it says: each token is an event of its own."""


class Unfit(enum.StrEnum):
    """Why a reply is not kept."""

    LONG = "long"
    BROKEN = "broken"
    """Not a whole answer, or none that we understand."""
    CUT = "cut"
    """It ended before its end: by a filter, or at a bound that the request did not set."""
    TOOLS = "tools"
    """It calls tools, which act upon a world that goes on."""
    EMPTY = "empty"
    USAGE = "usage"
    """Nobody said how many tokens it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A reply that may be stored."""

    body: bytes
    """JSON, not streamed."""
    to_its_end: bool
    """The model ended it, rather than a bound; otherwise only equal requests may get it."""


class Recording:
    """The pieces of one reply as they go by, up to a bound. For one task at a time."""

    __slots__ = ("_most", "pieces", "size", "streamed")

    def __init__(self, *, streamed: bool, max_bytes: int) -> None:
        """`max_bytes`: of the answer as JSON."""
        self._most = max_bytes * (_STREAM_FACTOR if streamed else 1)
        self.streamed = streamed
        self.pieces: list[bytes] = []
        self.size = 0

    def add(self, piece: bytes) -> None:
        """Take in a piece, of a stream whole events. Beyond the bound everything is let go."""
        self.size += len(piece)
        if self.size <= self._most:
            self.pieces.append(piece)
        else:
            self.pieces = []

    @property
    def too_long(self) -> bool:
        """The bound was passed."""
        return self.size > self._most


def keep(recording: Recording, tokens: Tokens, *, bounded: bool, max_bytes: int) -> Kept | Unfit:
    """What to store of a reply that came to its end. Takes about 3 us for each event of a stream.

    `tokens`: as the engine counted. `bounded`: the request bounds its length, and so do all that are equal to it.
    """
    if recording.too_long:
        return Unfit.LONG
    try:
        reply = _streamed(recording.pieces) if recording.streamed else _object(b"".join(recording.pieces))
        unfit, to_its_end = _ended(reply, bounded=bounded)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return Unfit.BROKEN
    if unfit is not None:
        return unfit
    usage = _usage(tokens) if recording.streamed else reply.get("usage") or _usage(tokens)
    if not usage:
        return Unfit.USAGE
    reply = {name: value for name, value in reply.items() if name not in _OF_ITS_MAKING}
    body = msgspec.json.encode({**reply, "usage": usage})
    return Unfit.LONG if len(body) > max_bytes else Kept(body=body, to_its_end=to_its_end)


def _ended(reply: JsonObject, *, bounded: bool) -> tuple[Unfit | None, bool]:
    """Why it is not to be kept; and whether the model itself ended it."""
    reasons = set()
    for choice in reply["choices"]:
        message = choice.get("message") or {}
        if message.get("tool_calls") or message.get("function_call"):
            return Unfit.TOOLS, False
        if not (message.get("content") or choice.get("text")):
            return Unfit.EMPTY, False
        reasons.add(choice.get("finish_reason"))
    if not reasons:
        return Unfit.BROKEN, False
    if not reasons <= ({"stop", "length"} if bounded else {"stop"}):
        return Unfit.CUT, False
    return None, reasons == {"stop"}


def words_of(body: bytes) -> list[str]:
    """What a reply says, one text for each choice. Raises msgspec.DecodeError for what `keep` did not make."""
    choices = _object(body).get("choices", [])
    return [(choice.get("message") or {}).get("content") or choice.get("text") or "" for choice in choices]


def _object(body: bytes) -> JsonObject:
    return msgspec.json.decode(body, type=dict[str, Any])


def _streamed(pieces: Sequence[bytes]) -> JsonObject:
    """The whole of a stream; nothing when it has no end, or reported a failure."""
    whole = Aggregate()
    done = False
    for piece in pieces:
        for payload in payloads(piece):
            if payload == _DONE:
                done = True
            else:
                whole.add(payload)
    return _object(whole.body()) if done and whole.error is None else {"choices": []}


def _usage(tokens: Tokens) -> JsonObject | None:
    if tokens.prompt is None or tokens.output is None:
        return None
    usage: JsonObject = {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
    }
    if tokens.reused is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": tokens.reused}
    return usage
