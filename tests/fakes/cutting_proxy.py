"""A TCP proxy between a client and its server that can cut, stall and refuse, in one direction or both."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable


class CuttingProxy:
    """Listens on a free port of 127.0.0.1 and passes on to `port` there, or to the Unix socket `path`.

    Use as an asynchronous context manager; `cut`, `stall` and `drop_answers` may be called at any time.
    """

    def __init__(self, *, port: int = 0, path: str = "") -> None:
        self._to_port, self._to_path = port, path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._refuses = False
        self._answers_to_drop = 0
        self.port = 0
        self.accepted = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self, *, refuse: bool = False) -> None:
        """End all connections; with `refuse`, new ones end at once until `heal`."""
        self._refuses = refuse
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """Nothing moves until `heal`, and nobody is told: a black hole."""
        self._open.clear()

    def heal(self) -> None:
        self._refuses = False
        self._open.set()

    def drop_answer(self) -> None:
        """The next thing that the server says never arrives: the connection ends instead."""
        self._answers_to_drop += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._refuses:
            writer.transport.abort()
            return
        there = (
            asyncio.open_unix_connection(self._to_path)
            if self._to_path
            else asyncio.open_connection("127.0.0.1", self._to_port)
        )
        try:
            other_reader, other_writer = await there
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, other_writer}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, other_writer, ends, lambda: False))
                tasks.create_task(self._pass(other_reader, writer, ends, self._drops))
        finally:
            self._writers -= ends

    def _drops(self) -> bool:
        if self._answers_to_drop:
            self._answers_to_drop -= 1
            return True
        return False

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: set[asyncio.StreamWriter],
        drops: Callable[[], bool],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._open.wait()
                if drops():
                    break
                writer.write(data)
                await writer.drain()
        for end in ends:
            end.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.heal()
        self.cut()
        while self._writers:  # noqa: ASYNC110 - their tasks end by themselves
            await asyncio.sleep(0.001)
