"""What a tier's speed is held against: the same bytes moved by the plainest code that there is.

Each mover owns what it moves to and from, and every buffer has been touched before it is used: fresh pages cost more to
touch than to copy into.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from nightfill.errors import TierUnavailable

if TYPE_CHECKING:
    from pathlib import Path

_PAGE: Final = 4096
_HUGE: Final = 2 << 20


class Mover(Protocol):
    """Moves whole blocks of one size by their number. Safe to call from several threads.

    Raises KvError or OSError when the device fails.
    """

    def save(self, index: int) -> None:
        """Store block `index`."""

    def load(self, index: int) -> None:
        """Bring block `index`, which was stored, into memory that the caller may use."""

    def forget(self, index: int) -> None:
        """Delete block `index`, so that `save` stores it for the first time. It need not be there."""


def touched(nbytes: int, *, shared: bool = False) -> memoryview:
    """`nbytes` bytes of memory, page-aligned and there already, not merely promised; our own, or `shared` memory.

    Our own is of huge pages where there are any; of what pages shared memory is, the kernel's settings say.
    """
    length = -(-nbytes // _PAGE) * _PAGE
    pages = mmap.mmap(-1, length, flags=(mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | mmap.MAP_ANONYMOUS)
    if length >= _HUGE and not shared:
        pages.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(pages)
    for at in range(0, length, _PAGE):
        view[at] = 1
    return view[:nbytes]


class Room:
    """One buffer of `nbytes` per thread."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._local = threading.local()

    def mine(self) -> memoryview:
        """That of this thread."""
        view: memoryview | None = getattr(self._local, "view", None)
        if view is None:
            view = self._local.view = touched(self._nbytes)
        return view


class Memory:
    """`memcpy` between one buffer and `count` blocks of memory, shared or not, that lie one behind the other."""

    def __init__(self, source: memoryview, *, count: int, shared: bool = False) -> None:
        self._nbytes = len(source)
        self._source = touched(self._nbytes)
        self._source[:] = source
        self._blocks = touched(self._nbytes * count, shared=shared)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._blocks))
        self._room = Room(self._nbytes)

    def save(self, index: int) -> None:
        """See `Mover`."""
        ctypes.memmove(self._start + index * self._nbytes, _address(self._source), self._nbytes)

    def load(self, index: int) -> None:
        """See `Mover`."""
        ctypes.memmove(_address(self._room.mine()), self._start + index * self._nbytes, self._nbytes)

    def forget(self, index: int) -> None:
        """See `Mover`. Memory keeps what it has."""

    def close(self) -> None:
        """Nothing is to be let go of."""


class RawFiles:
    """One `pwritev` into a new file of `folder` per block, one `preadv` of it, with O_DIRECT where `direct`."""

    def __init__(self, folder: Path, source: memoryview, *, direct: bool) -> None:
        self._folder = folder
        self._flags = os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        self._nbytes = len(source)
        self._source = touched(self._nbytes)
        self._source[:] = source
        self._room = Room(self._nbytes)

    def save(self, index: int) -> None:
        """See `Mover`."""
        fd = os.open(self._path(index), os.O_WRONLY | os.O_CREAT | os.O_EXCL | self._flags, 0o600)
        try:
            self._require(os.pwritev(fd, [self._source], 0))
        finally:
            os.close(fd)

    def load(self, index: int) -> None:
        """See `Mover`."""
        fd = os.open(self._path(index), os.O_RDONLY | self._flags)
        try:
            self._require(os.preadv(fd, [self._room.mine()], 0))
        finally:
            os.close(fd)

    def forget(self, index: int) -> None:
        """See `Mover`."""
        self._path(index).unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is to be let go of."""

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}.raw"

    def _require(self, moved: int) -> None:
        if moved != self._nbytes:
            raise TierUnavailable(f"the device moved {moved} of {self._nbytes} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """Where a server listens, and as whom to log in."""

    host: str = ""
    port: int = 6379
    path: str = ""
    """Of a Unix socket, instead of host and port."""
    tls: bool = False
    db: int = 0
    user: str = ""
    password: str = field(default="", repr=False)

    def connect(self, timeout_s: float) -> socket.socket:
        """A connection that is logged in. Raises OSError, TierUnavailable."""
        line = (
            socket.socket(socket.AF_UNIX) if self.path else socket.create_connection((self.host, self.port), timeout_s)
        )
        try:
            if self.path:
                line.settimeout(timeout_s)
                line.connect(self.path)
            else:
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                import ssl

                line = ssl.create_default_context().wrap_socket(line, server_hostname=self.host)
            else:
                # Blocking, with the kernel to end what takes too long.
                line.settimeout(None)
                limit = struct.pack("@ll", *divmod(int(timeout_s * 1e6), 1_000_000))
                for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                    line.setsockopt(socket.SOL_SOCKET, direction, limit)
            if self.password or self.user:
                _ask(line, b"AUTH", *([self.user.encode()] if self.user else []), self.password.encode())
            if self.db:
                _ask(line, b"SELECT", b"%d" % self.db)
        except BaseException:
            line.close()
            raise
        return line


class RawRedis:
    """SET and GET over blocking sockets, one for each thread that calls; `prefix` begins all keys."""

    def __init__(self, server: RedisServer, source: memoryview, *, prefix: bytes, timeout_s: float) -> None:
        self._server = server
        self._source = touched(len(source))
        self._source[:] = source
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._head = b"$%d\r\n" % len(source)
        self._room = Room(len(self._head) + len(source) + 2)
        self._local = threading.local()
        self._lines: list[socket.socket] = []

    def save(self, index: int) -> None:
        """See `Mover`."""
        key = self._key(index)
        line = self._line()
        # One piece as small as this and one as large as a block: `sendall` for the rest, as sockets take what they can.
        head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n%s" % (len(key), key, self._head)
        sent = line.sendmsg([head, self._source, b"\r\n"])
        if sent < len(head) + len(self._source):
            line.sendall(self._source[max(sent - len(head), 0) :])
            line.sendall(b"\r\n")
        elif sent < len(head) + len(self._source) + 2:
            line.sendall(b"\r\n"[sent - len(head) - len(self._source) :])
        _require_ok(line.recv(512))

    def load(self, index: int) -> None:
        """See `Mover`."""
        key = self._key(index)
        line, room = self._line(), self._room.mine()
        line.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key))
        got = 0
        while got < len(room):
            received = line.recv_into(room[got:])
            if not received:
                raise TierUnavailable("the server hung up")
            got += received
            if room[: min(got, len(self._head))] != self._head[:got]:
                raise TierUnavailable("the server lost a block")

    def forget(self, index: int) -> None:
        """See `Mover`."""
        _ask(self._line(), b"UNLINK", self._key(index))

    def close(self) -> None:
        """Hang up."""
        for line in self._lines:
            line.close()

    def _key(self, index: int) -> bytes:
        return self._prefix + b"%d" % index

    def _line(self) -> socket.socket:
        line: socket.socket | None = getattr(self._local, "line", None)
        if line is None:
            line = self._local.line = self._server.connect(self._timeout_s)
            self._lines.append(line)
        return line


def _ask(line: socket.socket, *words: bytes) -> None:
    line.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
    _require_ok(line.recv(512))


def _require_ok(reply: bytes) -> None:
    if reply[:1] not in (b"+", b":") or not reply.endswith(b"\r\n"):
        raise TierUnavailable(f"the server refuses: {reply[:200].decode(errors='replace').strip()}")


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
