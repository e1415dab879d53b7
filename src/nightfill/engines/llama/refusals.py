"""Errors of llama.cpp in OpenAI's shape, with the status that tells whose fault they are. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_TYPES: Final[dict[str, tuple[str, str | None]]] = {
    "invalid_request_error": ("invalid_request_error", None),
    "exceed_context_size_error": ("invalid_request_error", "context_length_exceeded"),
    "not_supported_error": ("invalid_request_error", "not_supported"),
    "not_found_error": ("invalid_request_error", "not_found"),
    "unavailable_error": ("server_error", "engine_unavailable"),
}
_SERVER: Final = ("server_error", "engine_error")
_REQUESTS_FAULT: Final = re.compile(
    r"Failed to parse (?:messages|tools)|^'\w+' is required$|^Unknown reasoning format|"
    r"^(?:image|audio|video) input is not supported|^Failed to initialize samplers|"
    # Nothing else than the request is read as JSON; 316 is text of the engine's own that is no UTF-8.
    r"\[json\.exception\.(?!type_error\.316\])"
)
"""What llama.cpp answers with 500 although the request alone decides that it fails: it throws where it reads."""
_BEYOND_VOCABULARY: Final = "vector::_M_range_check"
_PARAM: Final = re.compile(r"^(?:Field '(?P<field>\w+)':|'(?P<missing>\w+)' is required$)")
_MESSAGE_CHARS: Final = 2000


class _Error(msgspec.Struct):
    message: str = "no reason given"
    type: str = "server_error"
    code: int | str | None = None


class _Body(msgspec.Struct):
    error: _Error


def in_openais_shape(status: int, body: bytes, *, path: str) -> tuple[int, bytes]:
    """Status and body for the client of a request to `path` that llama.cpp refused with `status` and `body`."""
    try:
        error = msgspec.json.decode(body, type=_Body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = _Error()
    message = error.message[:_MESSAGE_CHARS]
    if path == "/detokenize" and _BEYOND_VOCABULARY in message:
        status, message = 400, "tokens: an id is not in the model's vocabulary"
    elif status == 501 or (status == 500 and _REQUESTS_FAULT.search(message)):
        status = 400
    kind, code = _TYPES.get(error.type, _SERVER)
    if status < 500 and kind == "server_error":
        kind, code = "invalid_request_error", None
    named = _PARAM.match(message)
    param = named and (named["field"] or named["missing"])
    return status, msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})
