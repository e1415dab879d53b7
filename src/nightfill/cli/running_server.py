"""Asks a server that runs, for commands whose answer it alone knows."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from nightfill.errors import BadSetting, NightfillError, NotFound

if TYPE_CHECKING:
    from nightfill.config import Settings

_WAIT_S: Final = 30.0


def address_of(settings: Settings) -> str:
    """Where a server with these settings is to be found on this machine."""
    gateway = settings.gateway
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(gateway.host, gateway.host)  # noqa: S104 - what it listens on
    return f"http://[{host}]:{gateway.port}" if ":" in host else f"http://{host}:{gateway.port}"


def ask(
    address: str, method: str, path: str, key: str, *, body: object = None, wait_s: float = _WAIT_S
) -> dict[str, Any]:
    """One request to the server. Raises NightfillError with what it answered, NotFound where that is 404."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise BadSetting("--url is not an address such as http://127.0.0.1:8700, without credentials", param="url")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=wait_s)
    data = b"" if body is None else msgspec.json.encode(body)
    try:
        connection.request(method, path, data or None, {"authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as exc:
        raise NightfillError(f"no answer from {address}: {exc or type(exc).__name__}; is it running?") from exc
    finally:
        connection.close()
    try:
        value = msgspec.json.decode(said, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise NightfillError(f"{address} answered {answer.status} with something else than JSON") from exc
    if answer.status < 300:
        return value
    message = str((value.get("error") or {}).get("message", f"status {answer.status}"))
    raise NotFound(message) if answer.status == 404 else NightfillError(message)
