"""Who may come in, and how many at once."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from nightfill.contexts.context import DEFAULT_TENANT, Tenant
from nightfill.errors import Draining, NotAllowed, NotAuthorised, QueueFull

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from nightfill.config import GatewaySettings
    from nightfill.gateway.exchange import Exchange
    from nightfill.state.load import LoadBoard

_BODIES_HELD: Final = 8
"""Bodies of the largest size that may be in memory before their request was admitted."""
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


def tenant_of(headers: Mapping[bytes, bytes], digests: Mapping[Tenant, bytes]) -> Tenant:
    """The tenant whose API key the request carries as `Authorization: Bearer` or `x-api-key`.

    `digests` are SHA-256 of the keys; empty means that no key is asked for. Every key is compared, each in constant
    time, so that neither the answer's time nor its text tells how close a wrong key was.
    """
    if not digests:
        return DEFAULT_TENANT
    scheme, _, presented = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        presented = headers.get(b"x-api-key", b"")
    digest = hashlib.sha256(presented.strip()).digest()
    found: Tenant | None = None
    for tenant, expected in digests.items():
        if hmac.compare_digest(digest, expected):
            found = tenant
    if found is None or not presented:
        raise NotAuthorised("missing or wrong API key; send it as `Authorization: Bearer KEY`")
    return found


def check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what a web page of another site asks of a server that wants no key.

    Without keys the only guard is that the server listens on loopback, and a browser on the same machine gets past that
    for any page it shows: directly (`Origin` is then foreign), or by a name that was made to point here (`Host` is).
    """
    for name in (b"host", b"origin"):
        value = headers.get(name)
        if value is None:
            continue
        host = _host_of(value)
        if host not in _LOOPBACK_NAMES:
            raise NotAllowed(f"without API keys, requests from {name.decode()} {host!r} are refused")


@functools.lru_cache(maxsize=64)
def _host_of(value: bytes) -> str:
    authority = value.decode("latin-1").rpartition("://")[2].lower()
    return authority if authority.endswith("]") else authority.rpartition(":")[0] or authority


class Admission:
    """Bounds on bodies and on requests at work. Used by one event loop."""

    def __init__(self, settings: GatewaySettings, board: LoadBoard) -> None:
        self._settings = settings
        self._board = board
        self._digests = {
            Tenant(tenant): hashlib.sha256(key.encode()).digest() for tenant, key in settings.api_keys.items()
        }
        self._held_bytes = 0
        self._max_held_bytes = _BODIES_HELD * settings.max_body_bytes
        self.in_flight = 0
        self.idle = asyncio.Event()
        """Set while nothing is in flight."""
        self.idle.set()
        self.draining = False

    def tenant(self, headers: Mapping[bytes, bytes]) -> Tenant:
        """Whose request it is. Raises NotAuthorised, NotAllowed."""
        if not self._digests and not self._settings.allow_anonymous:
            check_origin(headers)
        return tenant_of(headers, self._digests)

    def body(self, exchange: Exchange) -> AbstractAsyncContextManager[bytes]:
        """Read the body within the bounds of size, time and memory; it counts as held while inside.

        Raises RequestTooLarge, BodyTimeout, ClientLeft, QueueFull (too much held for others), Draining.
        """
        return _Body(self, exchange, self._settings)

    def place(self) -> AbstractContextManager[None]:
        """Count a request as live while it is inside. Raises QueueFull, Draining."""
        return _Place(self)

    def check_open(self) -> None:
        """Raises Draining."""
        if self.draining:
            raise Draining("the server is shutting down", retry_after_s=5.0)

    def hold(self, count: int) -> None:
        """Count bytes of bodies; negative when they are let go. Raises QueueFull."""
        if self._held_bytes + count > self._max_held_bytes and count > 0:
            raise QueueFull("too many large requests at once")
        self._held_bytes += count

    def enter(self) -> None:
        """One request more at work. Raises QueueFull, Draining."""
        self.check_open()
        if self.in_flight >= self._settings.max_in_flight:
            raise QueueFull(f"{self.in_flight} requests are in flight, the most that are allowed", retry_after_s=1.0)
        self.in_flight += 1
        self.idle.clear()
        self._board.enter()

    def leave(self) -> None:
        """One less."""
        self.in_flight -= 1
        self._board.leave()
        if not self.in_flight:
            self.idle.set()


class _Body:
    """The context of `Admission.body`. Like `_Place` a class, as a generator costs each request several times more."""

    __slots__ = ("_admission", "_exchange", "_held", "_settings")

    def __init__(self, admission: Admission, exchange: Exchange, settings: GatewaySettings) -> None:
        self._admission = admission
        self._exchange = exchange
        self._settings = settings
        self._held = 0

    async def __aenter__(self) -> bytes:
        self._admission.check_open()
        settings = self._settings
        try:
            return await self._exchange.body(
                max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s, reserve=self._hold
            )
        except BaseException:
            self._admission.hold(-self._held)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._admission.hold(-self._held)

    def _hold(self, count: int) -> None:
        self._admission.hold(count)
        self._held += count


class _Place:
    __slots__ = ("_admission",)

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def __enter__(self) -> None:
        self._admission.enter()

    def __exit__(self, *_: object) -> None:
        self._admission.leave()
