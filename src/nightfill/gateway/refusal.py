"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.errors import (
    AdapterUnfit,
    BadInput,
    BodyTimeout,
    BudgetSpent,
    Busy,
    Draining,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    NightfillError,
    NotAllowed,
    NotAuthorised,
    NotFound,
    NotStored,
    PromptTooLong,
    QueueFull,
    RequestTooLarge,
    StateUnavailable,
    WrongMethod,
    status_of,
)

if TYPE_CHECKING:
    from nightfill.gateway.exchange import Header

_CODES: Final[dict[type[NightfillError], tuple[str, str | None]]] = {
    BadInput: ("invalid_request_error", None),
    RequestTooLarge: ("invalid_request_error", "request_too_large"),
    PromptTooLong: ("invalid_request_error", "context_length_exceeded"),
    BodyTimeout: ("invalid_request_error", "request_timeout"),
    WrongMethod: ("invalid_request_error", "method_not_supported"),
    NotAuthorised: ("invalid_request_error", "invalid_api_key"),
    NotAllowed: ("invalid_request_error", "not_allowed"),
    NotFound: ("invalid_request_error", "not_found"),
    BudgetSpent: ("insufficient_quota", "budget_spent"),
    NotStored: ("server_error", "not_stored"),
    QueueFull: ("rate_limit_error", "rate_limit_exceeded"),
    Draining: ("server_error", "draining"),
    Busy: ("server_error", "busy"),
    EngineUnavailable: ("server_error", "engine_unavailable"),
    EngineTimeout: ("server_error", "engine_timeout"),
    AdapterUnfit: ("invalid_request_error", "model_not_found"),
    EngineError: ("server_error", "engine_error"),
    StateUnavailable: ("server_error", "state_unavailable"),
    NightfillError: ("server_error", None),
}
_NOT_FOUND: Final = {"model": "model_not_found", "nightfill.context": "context_not_found"}
_RETRY_AFTER_S: Final = 1.0


class Detail(msgspec.Struct, frozen=True):
    """What clients of OpenAI's API read of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class Body(msgspec.Struct, frozen=True):
    """The wire form of an error."""

    error: Detail


def body_of(error: NightfillError) -> bytes:
    """The error as JSON."""
    kind, code = next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)
    param = error.param if isinstance(error, BadInput) else None
    if isinstance(error, NotFound) and param in _NOT_FOUND:
        code = _NOT_FOUND[param]
    return msgspec.json.encode(Body(Detail(message=str(error), type=kind, param=param, code=code)))


def event_of(error: NightfillError) -> bytes:
    """The error as a server-sent event, for streams whose headers are out."""
    return b"data: " + body_of(error) + b"\n\n"


def headers_of(error: NightfillError) -> list[Header]:
    """Headers that go with the error: when to try again, which methods there are, how to authenticate."""
    match error:
        case WrongMethod():
            return [(b"allow", ", ".join(error.allowed).encode())]
        case NotAuthorised():
            return [(b"www-authenticate", b"Bearer")]
        case BudgetSpent():
            # It cannot go better before then, so that OpenAI's clients must not try again by themselves.
            wait_s = max(1, math.ceil(error.resets_at_s - time.time()))
            return [(b"x-should-retry", b"false"), (b"retry-after", b"%d" % wait_s)]
        case NotStored():
            return [(b"x-should-retry", b"false")]
        case Busy():
            after_s = error.retry_after_s
        case EngineUnavailable() | StateUnavailable():
            after_s = _RETRY_AFTER_S
        case _:
            return []
    return [
        (b"retry-after", b"%d" % max(1, math.ceil(after_s))),
        (b"retry-after-ms", b"%d" % max(1, math.ceil(after_s * 1000))),
    ]


def refusal(error: NightfillError) -> tuple[int, bytes, list[Header]]:
    """Status, body and headers for an error that ends a request before its answer began."""
    return status_of(error), body_of(error), headers_of(error)
