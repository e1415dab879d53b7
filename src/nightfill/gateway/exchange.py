"""One HTTP request and the answer to it, on top of raw ASGI."""

from __future__ import annotations

import asyncio
import os
import re
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.errors import BodyTimeout, ClientLeft, RequestTooLarge
from nightfill.state.bounded import within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    Scope = MutableMapping[str, Any]
    AsgiMessage = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[AsgiMessage]]
    Send = Callable[[AsgiMessage], Awaitable[None]]

Header = tuple[bytes, bytes]
JSON: Final = b"application/json"
CLOSE: Final[Header] = (b"connection", b"close")
_LINGER_S: Final = 2.0
_SMALL_BYTES: Final = 64 << 10
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class Exchange:
    """A request with its answer. One task reads it, one task answers it; times are `time.monotonic` seconds."""

    __slots__ = (
        *("_body_read", "_head_sent", "_receive", "_send"),
        *("headers", "method", "path", "query", "request_id", "started_s", "status"),
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._head_sent = False
        self._body_read = False
        self.started_s = time.monotonic()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        """Names in lower case; of a repeated header the last one."""
        self.status = 0
        """Status of the answer; 0 while none was sent."""
        given = self.headers.get(b"x-request-id", b"")
        self.request_id: bytes = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex().encode()

    @property
    def head_sent(self) -> bool:
        """Whether status and headers are on their way, so that an error can't have a status of its own any more."""
        return self._head_sent

    @property
    def much_unread(self) -> bool:
        """Whether the client may still be sending a body that is too long to be left in the socket."""
        if self._body_read:
            return False
        declared = self.declared_length()
        return b"transfer-encoding" in self.headers if declared is None else declared > _SMALL_BYTES

    def declared_length(self) -> int | None:
        """Content-Length, or None when there is none."""
        value = self.headers.get(b"content-length")
        return int(value) if value is not None and value.isdigit() else None

    async def body(self, *, max_bytes: int, timeout_s: float, reserve: Callable[[int], None]) -> bytes:
        """The whole body. `reserve` is told of each piece before it is kept, and may raise to refuse it.

        Raises RequestTooLarge (by its declared length before a byte of it is read), BodyTimeout, ClientLeft.
        """
        declared = self.declared_length()
        if declared is not None and declared > max_bytes:
            raise RequestTooLarge(f"the body has {declared} bytes; at most {max_bytes} are taken")
        try:
            pieces = await within(timeout_s, self._pieces(max_bytes, reserve))
        except TimeoutError as exc:
            raise BodyTimeout(f"the body did not arrive within {timeout_s:g} s") from exc
        self._body_read = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _pieces(self, max_bytes: int, reserve: Callable[[int], None]) -> list[bytes]:
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise ClientLeft("the client left before its body had arrived")
            piece: bytes = event.get("body", b"")
            size += len(piece)
            if size > max_bytes:
                raise RequestTooLarge(f"the body has more than {max_bytes} bytes")
            if piece:
                reserve(len(piece))
                pieces.append(piece)
            more = event.get("more_body", False)
        return pieces

    async def left(self) -> None:
        """Return when the client has hung up. To be awaited after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Send status and headers."""
        self._head_sent = True
        self.status = status
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, (b"x-request-id", self.request_id)],
            }
        )

    async def send(self, chunk: bytes, *, more: bool) -> None:
        """Send a piece of the body; waits while the client reads too slowly."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def send_last(self, body: bytes) -> None:
        """Send all that is left of the answer.

        Raises ClientLeft when the client hangs up before it has taken so much of it that the rest fits in buffers.
        """
        if len(body) > _SMALL_BYTES:
            await self.send(body, more=True)
            await self.send(b"", more=True)  # the server waits for what was sent before
            if await self._has_left():
                raise ClientLeft("the client left before its answer was complete")
            body = b""
        await self.send(body, more=False)

    async def _has_left(self) -> bool:
        try:
            async with asyncio.timeout(0):
                await self.left()
        except TimeoutError:
            return False
        return True

    async def respond(
        self, status: int, body: bytes, *, content_type: bytes = JSON, headers: Iterable[Header] = ()
    ) -> None:
        """Send a whole answer."""
        head = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
        await self.start(status, head)
        await self.send_last(b"" if self.method == "HEAD" else body)

    async def respond_json(self, status: int, value: object, *, headers: Iterable[Header] = ()) -> None:
        """Send `value` as JSON."""
        await self.respond(status, msgspec.json.encode(value), headers=headers)

    async def respond_early(self, status: int, body: bytes, *, headers: Iterable[Header]) -> None:
        """Answer although the body was not read, and close.

        A connection closed over unread bytes is reset, and the client may then never see the answer. So the answer goes
        out whole and at once, and what the client still sends is thrown away for a moment before the connection ends.
        """
        await self.start(status, [(b"content-type", JSON), (b"content-length", b"%d" % len(body)), CLOSE, *headers])
        await self.send(body, more=True)
        try:
            async with asyncio.timeout(_LINGER_S):
                while True:
                    event = await self._receive()
                    if event["type"] == "http.disconnect" or not event.get("more_body", False):
                        break
        except TimeoutError:
            pass  # it had its moment
        await self.send(b"", more=False)
