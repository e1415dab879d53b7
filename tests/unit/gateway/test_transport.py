from __future__ import annotations

import asyncio
from typing import cast

from nightfill.gateway.transport import joining

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Wire:
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.writes.append(data)

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.write(b"|".join(pieces))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def get_extra_info(self, name: str) -> str:
        return f"the {name}"


def wired() -> tuple[Wire, asyncio.Transport]:
    wire = Wire()
    return wire, joining(cast("asyncio.Transport", wire))


async def turn() -> None:
    await asyncio.sleep(0)


async def test_a_head_leaves_with_the_first_piece_of_its_body() -> None:
    wire, transport = wired()
    transport.write(HEAD)
    assert wire.writes == []
    transport.write(b"ok")
    transport.write(b"more")
    await turn()
    assert wire.writes == [HEAD + b"ok", b"more"]


async def test_a_head_that_is_alone_leaves_alone_at_the_next_turn() -> None:
    wire, transport = wired()
    transport.write(HEAD)
    await turn()
    assert wire.writes == [HEAD]
    transport.write(b"ok")
    assert wire.writes == [HEAD, b"ok"]


async def test_a_piece_of_a_body_that_looks_like_a_head_is_sent_too() -> None:
    wire, transport = wired()
    transport.write(HEAD)
    transport.write(HEAD)
    transport.write(HEAD)
    await turn()
    assert wire.writes == [HEAD + HEAD, HEAD]


async def test_a_large_piece_is_not_copied() -> None:
    wire, transport = wired()
    large = bytes(1 << 20)
    transport.write(HEAD)
    transport.write(large)
    assert wire.writes == [HEAD + b"|" + large]


async def test_closing_sends_what_is_held_and_nothing_is_sent_after_the_end() -> None:
    wire, transport = wired()
    transport.write(HEAD)
    transport.close()
    assert (wire.writes, wire.closing) == ([HEAD], True)

    wire, transport = wired()
    transport.write(HEAD)
    wire.closing = True  # the client left
    await turn()
    assert wire.writes == []


async def test_all_else_is_the_transports_own() -> None:
    _, transport = wired()
    assert transport.get_extra_info("socket") == "the socket"
