"""A Redis or Valkey server as the books see it: scripts that are atomic, a connection that comes back by itself.

Everything lies under one hash tag, so that it has one slot, and that scripts run on a cluster too. Time is
the server's.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
import re
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from nightfill.errors import StateUnavailable
from nightfill.state.redis.connection import Connection, ConnectionLost, Reply, ServerSilent, Word, open_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from nightfill.kv.resp import Address

T = TypeVar("T")
ROOT: Final = "{nightfill}"
"""Begins each key; the braces are the hash tag of a cluster."""
_SCANNED: Final = 500
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua program."""

    source: str
    digest: str


_LENT: Final = {"book": (("jobs", "cancel_target"),), "jobs": (("jobs", "bring_back"), ("jobs", "hold_on"))}
"""Programs that others call as functions, by the file of those. What such a one needs is made only when it is called,
so that who rarely calls it is not slow for it."""


@functools.cache
def scripts(name: str) -> Mapping[str, Script]:
    """The programs of `name`.lua; see common.lua."""
    common = _text("common")
    shared, *programs = _text(name).split("\n--- ")
    for other, title in _LENT.get(name, ()):
        shared = shared.replace("\nlocal function ", f"\n{_as_function(other, title)}\nlocal function ", 1)
    made = {}
    for program in programs:
        title, body = program.split("\n", 1)
        source = _with_needed((common, shared), body)
        made[title] = Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
    return made


def _text(name: str) -> str:
    return (resources.files("nightfill.state.redis") / f"{name}.lua").read_text(encoding="utf-8")


def _as_function(name: str, title: str) -> str:
    """A program of `name`.lua as a function; all that it needs but the common ones is within, under its own names."""
    shared, *programs = _text(name).split("\n--- ")
    (body,) = (text for head, _, text in (program.partition("\n") for program in programs) if head == title)
    inner = _with_needed((shared,), body).replace("\n", "\n  ")
    return f"local function {title}(...)\n  local args = {{...}}\n  {inner}\nend\n"


def _with_needed(shared: Sequence[str], program: str) -> str:
    """The program, behind the constants of `shared` and those functions that it calls."""
    for part in reversed(shared):
        constants, *functions = re.split(r"^local function ", part, flags=re.MULTILINE)
        for function in reversed(functions):  # each names earlier ones alone
            name = function[: function.index("(")]
            if re.search(rf"\b{name}\(", program):
                program = f"local function {function}{program}"
        program = f"{constants}\n{program}"
    return program


def batches(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """In runs of at most so many."""
    return (items[start : start + most] for start in range(0, len(items), most))


def pairs(reply: Sequence[T]) -> Iterator[tuple[T, T]]:
    """Fields and values, as a hash or a sorted set is answered."""
    return zip(reply[::2], reply[1::2], strict=True)


class Server:
    """Calls of one event loop. All raise StateUnavailable: unreachable, silent for `timeout_s`, or unable.

    After a failure, calls are refused at once until the server is back, so that nobody waits for one that is away. It
    is looked for when somebody calls, after a while that doubles up to `_LONGEST_WAIT_S`.
    """

    def __init__(self, address: Address, *, timeout_s: float, clock: Callable[[], float] | None = None) -> None:
        self.address = address
        self._at = address
        """Where it was last found; of a cluster, the server that has our slot."""
        self._timeout_s = timeout_s
        self._clock = clock
        """For tests: Unix seconds instead of the server's own."""
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._failures = 0
        self._not_before_s = 0.0
        self._closed = False

    async def call(self, *words: Word) -> Any:
        """One command that may be sent twice: when the connection ends before the answer, it is asked again."""
        return await self._asked(words, again=True)

    async def run(self, program: Script, *args: object, blobs: tuple[bytes, ...] = (), again: bool = True) -> Any:
        """A program, in one atomic step. `again`: doing it twice does no more than doing it once."""
        now = "" if self._clock is None else repr(self._clock())
        tail: tuple[Word, ...] = (1, ROOT, now, msgspec.msgpack.encode(args), *blobs)
        try:
            return await self._asked(("EVALSHA", program.digest, *tail), again=again)
        except _NoScriptError:
            return await self._asked(("EVAL", program.source, *tail), again=again)

    async def now_s(self) -> float:
        """Unix seconds by the server's clock."""
        if self._clock is not None:
            return self._clock()
        seconds, micros = await self.call("TIME")
        return int(seconds) + int(micros) / 1e6

    async def scan(self, command: str, key: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """Fields and values of a hash (HSCAN) or members and scores of a sorted set (ZSCAN), in steps between which it
        may change; what is there all the while comes, perhaps twice.
        """
        cursor = b"0"
        while True:
            cursor, found = await self.call(command, key, cursor, "COUNT", _SCANNED)
            for pair in pairs(found):
                yield pair
            if cursor == b"0":
                return

    async def aclose(self) -> None:
        """Hang up. Idempotent."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        if self._connection is not None:
            await self._connection.aclose()
            self._connection = None

    async def _asked(self, words: tuple[Word, ...], *, again: bool, again_there: bool = True) -> Reply:
        connection = self._connection
        if connection is None or not connection.usable:
            connection = await self._connected()
        try:
            reply = await connection.call(*words)
        except ServerSilent:
            self._failed()
            raise
        except ConnectionLost:
            if not again:
                raise
            connection = await self._connected()
            reply = await connection.call(*words)
        match str(reply).split(" ") if isinstance(reply, Exception) else None:
            case None:
                return reply
            case ["NOSCRIPT", *_]:
                raise _NoScriptError
            case ["MOVED", _, place] if again_there:
                # Of a cluster: our one slot is with another of its servers. It did nothing.
                host, _, port = place.rpartition(":")
                self._at = replace(self.address, host=host or self._at.host, port=int(port))
                await connection.aclose()
                return await self._asked(words, again=again, again_there=False)
            case ["READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOAUTH", *_]:
                # Behind the address may be another server by now.
                await connection.aclose()
                self._failed()
        raise StateUnavailable(f"state {self._at}: {str(reply)[:500]}")

    async def _connected(self) -> Connection:
        if self._closed:
            raise StateUnavailable(f"state {self.address}: closed")
        loop = asyncio.get_running_loop()
        if self._connection is not None and self._connection.usable:
            return self._connection
        if self._connecting is None:
            wait_s = self._not_before_s - loop.time()
            if wait_s > 0:
                raise StateUnavailable(f"state {self.address}: out of reach, tried again in {wait_s:.2f} s")
            self._connecting = loop.create_task(self._connect(), name="connect to the state")
            self._connecting.add_done_callback(_heard)
        if self._failures:
            # A server that was away is looked for behind the callers' backs.
            raise StateUnavailable(f"state {self.address}: out of reach")
        # Shared by all who wait: one of them leaving must not end it for the others.
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Connection:
        try:
            self._connection = await open_connection(self._at, timeout_s=self._timeout_s)
        except StateUnavailable:
            self._at = self.address
            self._failed()
            raise
        finally:
            self._connecting = None
        self._failures = 0
        return self._connection

    def _failed(self) -> None:
        wait_s = min(_FIRST_WAIT_S * 2.0**self._failures, _LONGEST_WAIT_S)
        self._failures = min(self._failures + 1, 16)
        # Spread, or all of a fleet come back in the same moment.
        self._not_before_s = asyncio.get_running_loop().time() + wait_s * random.uniform(0.5, 1.0)  # noqa: S311


def _heard(task: asyncio.Task[Connection]) -> None:
    """Those who waited may all have left before it failed."""
    if not task.cancelled():
        task.exception()


class _NoScriptError(Exception):
    """The server does not have the program yet, or was started anew."""
