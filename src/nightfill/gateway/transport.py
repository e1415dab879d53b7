"""Fewer and larger writes: each is a system call, and wakes the client."""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

_HEAD: Final = b"HTTP/1.1 "
_JOINED_BYTES: Final = 64 << 10
"""What is longer than this is not copied behind its head."""


def joining(transport: asyncio.Transport) -> asyncio.Transport:
    """`transport`, but an answer's head leaves together with the first piece of its body.

    The server writes them one after the other, and nearly always in one go. A head that is alone when the event loop
    comes round leaves alone, so nothing waits for anything.
    """
    return cast("asyncio.Transport", _Joining(transport))


class _Joining:
    __slots__ = ("_alone", "_held", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self._alone: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:
        held = self._held
        if held:
            self._release()
            if len(data) <= _JOINED_BYTES:
                self._transport.write(held + data)
            else:
                self._transport.writelines((held, data))
        elif data.startswith(_HEAD):  # or a piece of a body that looks like one: it loses no more than a moment
            self._held = data
            self._alone = asyncio.get_running_loop().call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if held := self._held:
            self._release()
            if not self._transport.is_closing():
                self._transport.write(held)

    def _release(self) -> None:
        self._held = b""
        if self._alone is not None:
            self._alone.cancel()
            self._alone = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)  # everything else is the transport's own
