"""Keeps strangers out of a vLLM server that nightfill started: middleware inside the server.

vLLM asks for its key before `/v1` and a few more. What puts a server to sleep, or runs any method of its workers, is
open to all who reach its port, and on loopback these are all users of the machine. Standard library only.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_KEY: Final = "VLLM_API_KEY"
_OPEN: Final = "/health"
_REFUSAL: Final = b'{"error":{"message":"the API key is missing or wrong","type":"invalid_request_error"}}'


class Door:
    """ASGI middleware: everything but `/health` wants `Authorization: Bearer KEY`, the key from VLLM_API_KEY."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._wanted = f"Bearer {os.environ[_KEY]}".encode()

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Pass on, or refuse with 401."""
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_REFUSAL))]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _may_pass(self, scope: Mapping[str, Any]) -> bool:
        if scope["path"] == _OPEN and scope["type"] == "http":
            return True
        given = b"".join(value for name, value in scope["headers"] if name == b"authorization")
        return hmac.compare_digest(given, self._wanted)
