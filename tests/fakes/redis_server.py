"""A real `redis-server` of the test's own, which can be killed, paused and started again in its place."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nightfill.errors import TierUnavailable
from nightfill.kv.resp import Address, Connection, Reply, ReplyError

if TYPE_CHECKING:
    from collections.abc import Sequence

START_S = 20.0


class RedisServer:
    """Keeps nothing on disk. Listens on a Unix socket, and with `tcp` on a free port of 127.0.0.1 too."""

    def __init__(self, *options: str, tcp: bool = False, password: str = "") -> None:
        self._folder = tempfile.mkdtemp(prefix="redis-")  # the path of a socket must be short
        self._options = list(options)
        self._process: subprocess.Popen[bytes] | None = None
        self.path = str(Path(self._folder) / "s")
        self.port = free_port() if tcp else 0
        self.password = password
        self.start()

    @property
    def address(self) -> Address:
        if self.port:
            return Address(host="127.0.0.1", port=self.port, password=self.password)
        return Address(path=self.path, password=self.password)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{self.path}"

    def start(self) -> None:
        assert self._process is None
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        assert program, "these tests need redis-server or valkey-server"
        command = [program, "--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", self.path]
        command += ["--save", "", "--appendonly", "no", "--dir", self._folder, *self._options]
        if self.password:
            command += ["--requirepass", self.password]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                self.call([b"PING"])
            except TierUnavailable:
                assert self._process.poll() is None, "redis-server did not start"
                assert time.monotonic() < deadline_s, "redis-server does not answer"
                time.sleep(0.01)
            else:
                return

    def call(self, *commands: Sequence[bytes]) -> list[Reply]:
        """What another client may do behind our back."""
        connection = Connection(self.address, deadline_s=time.monotonic() + START_S)
        try:
            replies = connection.call(commands, deadline_s=time.monotonic() + START_S)
        finally:
            connection.close()
        errors = [reply for reply in replies if isinstance(reply, ReplyError)]
        assert not errors, errors
        return replies

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Returns when the kernel has stopped it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def tls_options(port: int, certificate: Path, key: Path) -> list[str]:
    """Have a server speak TLS on a port, and ask no client for a certificate."""
    options = {"port": port, "cert-file": certificate, "key-file": key, "auth-clients": "no"}
    return [word for name, value in options.items() for word in (f"--tls-{name}", str(value))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
