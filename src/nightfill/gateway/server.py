"""Listening, and leaving in good order: uvicorn inside an event loop that somebody else owns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from typing import TYPE_CHECKING, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nightfill.errors import BadSetting
from nightfill.gateway.transport import joining

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nightfill.config import GatewaySettings
    from nightfill.gateway.app import Gateway

_LOG: Final = logging.getLogger(__name__)
_BACKLOG: Final = 1024
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_ABORT_S: Final = 5.0


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the composition root."""
        yield


class _Protocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(joining(transport))


class Server:
    """A gateway on a socket. Use as an asynchronous context manager: it listens inside, and is gone after.

    Leaving drains: readiness turns 503 and new requests are refused at once, running ones may end within `drain_s`,
    then they are aborted with an error that their clients can read. Raises BadSetting when the address is taken or not
    allowed.
    """

    def __init__(self, gateway: Gateway, settings: GatewaySettings) -> None:
        self._gateway = gateway
        self._settings = settings
        self._socket = _bound(settings)
        host, port = self._socket.getsockname()[:2]
        self.host: str = host
        self.port: int = port
        config = uvicorn.Config(
            gateway,
            http=_Protocol,
            ws="none",
            loop="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(_ABORT_S),
            # Beyond live requests: bodies on their way, health checks, idle keep-alive connections.
            limit_concurrency=16 * settings.max_in_flight + 256,
            backlog=_BACKLOG,
        )
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def refuse(self) -> None:
        """Take no new work from now on; what runs goes on. Idempotent."""
        self._gateway.drain()

    async def drain(self) -> None:
        """Refuse new work and wait for what is running, at most `drain_s`; then abort it."""
        self.refuse()
        if not await self._gateway.idle(self._settings.drain_s):
            _LOG.warning("%d requests aborted after %g s of drain", self._gateway.in_flight, self._settings.drain_s)
            self._gateway.abort()
            await self._gateway.idle(_ABORT_S)

    async def __aenter__(self) -> Server:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="gateway-server")
        while not self._server.started:
            if self._task.done():
                await self._task  # raises what went wrong
                raise BadSetting(f"the gateway ended before it listened on {self.url}")
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        try:
            await self.drain()
        finally:
            self._server.should_exit = True
            await self._task


def _bound(settings: GatewaySettings) -> socket.socket:
    if not (settings.api_keys or settings.allow_anonymous or settings.host in _LOOPBACK):
        raise BadSetting(
            f"gateway.host {settings.host!r} is open to others, so gateway.api_keys must be set (or "
            "gateway.allow_anonymous, if others may use it without a key)",
            param="gateway.host",
        )
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((settings.host, settings.port))
        except BaseException:
            listening.close()
            raise
    except OSError as exc:
        raise BadSetting(
            f"gateway.host {settings.host!r}, gateway.port {settings.port}: {exc.strerror or exc}", param="gateway.port"
        ) from exc
    listening.setblocking(False)
    return listening


@contextlib.contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` on SIGTERM or SIGINT while inside. For the composition root; main thread only."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
