"""A small blocking client of RESP2, the protocol of Redis and Valkey, for values of tens of megabytes.

A value goes from the socket straight into the caller's buffer and from the caller's views straight to the socket: no
parser and no copy in between, so that it moves as fast as the socket does.
https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from nightfill.errors import BadSetting, TierUnavailable

if TYPE_CHECKING:
    import ssl

Command: TypeAlias = Sequence[bytes | memoryview]
"""Name and arguments."""
Sink: TypeAlias = Callable[[int], memoryview]
"""Gives a writable view of so many bytes for a value that is about to arrive; a KvError refuses that length."""

MAX_VALUE_BYTES: Final = 512 << 20
"""`proto-max-bulk-len` of a server that nobody configured."""
_SCRATCH_BYTES: Final = 16 << 10
_APART_BYTES: Final = 4 << 10
"""Larger arguments are sent from where they lie, smaller ones are copied together."""
_IOV_MAX: Final = 1024
"""Pieces that Linux sends in one go."""
_MAX_SMALL_BYTES: Final = 1 << 20
_MAX_ITEMS: Final = 1 << 20
_MAX_DEPTH: Final = 4
_MAX_OWED: Final = 64
_TIMEVAL: Final = struct.Struct("@ll")
"""Seconds and microseconds."""
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


@dataclass(frozen=True, slots=True)
class ReplyError:
    """The server's answer to one command that it did not execute. The connection goes on."""

    text: str

    @property
    def code(self) -> str:
        """`OOM`, `WRONGTYPE`, `LOADING`, ...; `ERR` for most others."""
        return self.text.split(" ", 1)[0]


Reply: TypeAlias = "int | bytes | memoryview | ReplyError | list[Reply] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens, and as whom to log in."""

    host: str = ""
    port: int = 6379
    path: str = ""
    """Of a Unix socket, instead of host and port."""
    tls: bool = False
    db: int = 0
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.path or f'{self.host}:{self.port}'}/{self.db}"


def parse_url(url: str, *, param: str = "url") -> Address:
    """`redis[s]://[user:password@]host[:port][/db]` or `unix://[user:password@]/path[?db=n]`. Raises BadSetting.

    The message names `param` and never holds the password.
    """
    wrong = f"{param}: expected redis://[user:password@]host:port/db, rediss://... or unix:///path?db=n"
    try:
        parts = urlsplit(url)
        port = parts.port
        query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        unix = parts.scheme == "unix"
        db = int(query.pop("db", "0") if unix else parts.path.strip("/") or "0")
    except ValueError as error:
        raise BadSetting(wrong, param=param) from error
    usable = parts.path if unix else parts.scheme in {"redis", "rediss"} and parts.hostname
    if not usable or query or parts.fragment or db < 0:
        raise BadSetting(wrong, param=param)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if unix:
        return Address(path=unquote(parts.path), db=db, user=user, password=password)
    tls = parts.scheme == "rediss"
    return Address(host=parts.hostname or "", port=port or 6379, tls=tls, db=db, user=user, password=password)


class Connection:
    """One connection, logged in and with its database chosen; for one thread at a time.

    Deadlines are by `time.monotonic`. Whatever fails on the way (the server gone, too slow, or answering what nobody
    asked) closes the connection and raises TierUnavailable: after half a reply nothing can be told from it any more.
    """

    def __init__(self, address: Address, *, deadline_s: float) -> None:
        self._address = address
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._begin = self._end = 0
        """What was received and not yet looked at."""
        self._owed = 0
        """Replies to `post` that have not been read."""
        self._waits_s: dict[int, float] = {}
        """How long the kernel waits at most, in each direction."""
        self.closed = False
        try:
            self._socket = _connected(address, deadline_s)
        except OSError as error:
            raise TierUnavailable(f"{address}: cannot connect: {_reason(error)}") from error
        except UnicodeError as error:
            raise TierUnavailable(f"{address}: cannot connect: not the name of a host") from error
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN | select.POLLRDHUP)
        self._log_in(deadline_s)

    def call(self, commands: Sequence[Command], *, deadline_s: float, into: Sink | None = None) -> list[Reply]:
        """Send all `commands` and read their replies, in one round trip.

        Values at the top level of a reply land in what `into` gives, if it is given. All other replies must be
        small, and those of one call together fit into the buffers of a socket: nothing is read before all is sent.
        """
        with self._closed_by_failure():
            self._send(commands, deadline_s)
            self._settle(deadline_s)
            replies = [self._reply(deadline_s, into) for _ in commands]
            if self._begin != self._end:
                raise TierUnavailable(f"{self._address}: sent more than it was asked for")
        return replies

    def post(self, command: Command, *, deadline_s: float) -> None:
        """Send a command without waiting for its reply, which nobody gets to see."""
        with self._closed_by_failure():
            if self._owed >= _MAX_OWED:
                self._settle(deadline_s)
            self._send([command], deadline_s)
            self._owed += 1

    def usable(self) -> bool:
        """Whether it is still there, as far as can be told without asking the server."""
        events = dict(self._poll.poll(0)).get(self._socket.fileno(), 0)
        return not self.closed and not events & _GONE and not (events and not self._owed)

    def close(self) -> None:
        """Hang up. Idempotent."""
        self.closed = True
        self._socket.close()

    @contextmanager
    def _closed_by_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            raise TierUnavailable(f"{self._address}: {_reason(error)}") from error
        except BaseException:
            self.close()
            raise

    def _log_in(self, deadline_s: float) -> None:
        address, commands = self._address, []
        if address.password or address.user:
            login = [address.user, address.password] if address.user else [address.password]
            commands.append([b"AUTH", *(word.encode() for word in login)])
        if address.db:
            commands.append([b"SELECT", b"%d" % address.db])
        for reply in self.call([*commands, [b"PING"]], deadline_s=deadline_s):
            if isinstance(reply, ReplyError):
                self.close()
                raise TierUnavailable(f"{address}: {reply.text}")

    def _send(self, commands: Sequence[Command], deadline_s: float) -> None:
        parts = _encoded(commands)
        while parts:
            self._wait_until(deadline_s, socket.SO_SNDTIMEO)
            if self._address.tls:  # which has no way to send from several places
                self._socket.sendall(parts.pop(0))
                continue
            sent = self._socket.sendmsg(parts[:_IOV_MAX])
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]

    def _settle(self, deadline_s: float) -> None:
        while self._owed:
            self._reply(deadline_s, None)
            self._owed -= 1

    def _reply(self, deadline_s: float, into: Sink | None, depth: int = 0) -> Reply:
        line = self._line(deadline_s)
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return ReplyError(rest.decode(errors="replace"))
        try:
            number = int(rest)
        except ValueError as error:
            raise TierUnavailable(f"{self._address}: does not speak RESP2") from error
        if kind == b":":
            return number
        if number == -1 and kind in b"$*":
            return None
        if kind == b"$" and 0 <= number <= (_MAX_SMALL_BYTES if into is None else MAX_VALUE_BYTES):
            view = memoryview(bytearray(number)) if into is None else into(number)
            self._fill(view, deadline_s)
            end = bytearray(2)
            self._fill(memoryview(end), deadline_s)
            if end != b"\r\n":
                raise TierUnavailable(f"{self._address}: a reply is longer than its header says")
            return bytes(view) if into is None else view
        if kind == b"*" and 0 <= number <= _MAX_ITEMS and depth < _MAX_DEPTH:
            return [self._reply(deadline_s, None, depth + 1) for _ in range(number)]
        raise TierUnavailable(f"{self._address}: a reply that nobody expects")

    def _line(self, deadline_s: float) -> bytes:
        while (stop := self._scratch.find(b"\r\n", self._begin, self._end)) < 0:
            if self._begin:
                held = self._end - self._begin
                self._scratch[:held] = self._scratch[self._begin : self._end]
                self._begin, self._end = 0, held
            if self._end == _SCRATCH_BYTES:
                raise TierUnavailable(f"{self._address}: does not speak RESP2")
            self._end += self._receive(self._view[self._end :], deadline_s)
        line = bytes(self._view[self._begin : stop])
        self._begin = stop + 2
        return line

    def _fill(self, out: memoryview, deadline_s: float) -> None:
        done = min(len(out), self._end - self._begin)
        out[:done] = self._view[self._begin : self._begin + done]
        self._begin += done
        while done < len(out):
            done += self._receive(out[done:], deadline_s)

    def _receive(self, out: memoryview, deadline_s: float) -> int:
        self._wait_until(deadline_s, socket.SO_RCVTIMEO)
        received = self._socket.recv_into(out)
        if not received:
            raise ConnectionResetError("the server hung up")
        return received

    def _wait_until(self, deadline_s: float, direction: int) -> None:
        """Bound the next wait in one direction, to within a few hundredths of the time that is left."""
        left_s = _left(deadline_s)
        if self._address.tls:
            self._socket.settimeout(left_s)
            return
        # By the kernel: with a timeout of Python's own, each of the dozens of pieces in which a value comes takes one
        # more system call, to ask whether it is there.
        if not 0.99 * left_s <= self._waits_s.get(direction, 0.0) <= 1.02 * left_s:
            self._waits_s[direction] = left_s
            left_us = max(int(left_s * 1e6), 1)  # 0 would be for ever
            self._socket.setsockopt(socket.SOL_SOCKET, direction, _TIMEVAL.pack(*divmod(left_us, 1_000_000)))


def _connected(address: Address, deadline_s: float) -> socket.socket:
    if address.path:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(_left(deadline_s))
            made.connect(address.path)
            made.settimeout(None)
        except BaseException:
            made.close()
            raise
        return made
    made = socket.create_connection((address.host, address.port), timeout=_left(deadline_s))
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if address.tls:
            made.settimeout(_left(deadline_s))
            made = _context().wrap_socket(made, server_hostname=address.host)
        else:
            made.settimeout(None)
    except BaseException:
        made.close()
        raise
    return made


def _context() -> ssl.SSLContext:
    """Authorities are the system's, or those in the file that SSL_CERT_FILE names."""
    import ssl  # takes longer to import than all the rest of this module, and few need it

    return ssl.create_default_context()


def _left(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError | BlockingIOError):
        return "no answer in time"
    return error.strerror or str(error) or type(error).__name__


def _encoded(commands: Sequence[Command]) -> list[memoryview]:
    """What goes over the wire: few pieces, of which the large ones are the caller's own views."""
    parts: list[memoryview] = []
    small = bytearray()
    for command in commands:
        small += b"*%d\r\n" % len(command)
        for argument in command:
            small += b"$%d\r\n" % len(argument)
            if len(argument) < _APART_BYTES:
                small += argument
            else:
                parts += [memoryview(small), memoryview(argument)]
                small = bytearray()
            small += b"\r\n"
    return [*parts, memoryview(small)]
