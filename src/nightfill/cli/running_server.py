"""Asks a server that runs, for commands whose answer it alone knows."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click
import msgspec

from nightfill.cli.output import json_option
from nightfill.cli.root import environment
from nightfill.errors import BadSetting, NightfillError, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightfill.cli.root import Options
    from nightfill.config import Settings

_WAIT_S: Final = 30.0


def server_options(command: Any) -> Any:
    """The options `--url`, `--api-key-env` and `--json` of a command, for `server_of`."""
    command = click.option("--url", help="Address of the server.  [default: as the settings say]")(command)
    text = "Name of the environment variable with the API key.  [default: the key in the settings]"
    return json_option(click.option("--api-key-env", help=text)(command))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """Whom to ask, and as whom."""

    address: str
    key: str

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        wait_s: float = _WAIT_S,
    ) -> dict[str, Any]:
        """As `ask`."""
        return ask(self.address, method, path, self.key, body=body, headers=headers, wait_s=wait_s)


def server_of(options: Options, url: str | None, key_name: str | None) -> RunningServer:
    """The server that the options name, else that of the settings, with whose key it is asked."""
    key = environment().get(key_name, "") if key_name else ""
    if url is not None:
        return RunningServer(address=url, key=key)  # a key of the settings is for the address of the settings alone
    from nightfill.cli.workspace import Workspace

    settings = Workspace.load(options).settings
    keys = settings.gateway.api_keys
    own = keys.get("default") or (next(iter(keys.values())) if len(keys) == 1 else "")
    return RunningServer(address=address_of(settings), key=key if key_name else own)


def address_of(settings: Settings) -> str:
    """Where a server with these settings is to be found on this machine."""
    gateway = settings.gateway
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(gateway.host, gateway.host)  # noqa: S104 - what it listens on
    return f"http://[{host}]:{gateway.port}" if ":" in host else f"http://{host}:{gateway.port}"


def ask(
    address: str,
    method: str,
    path: str,
    key: str,
    *,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    wait_s: float = _WAIT_S,
) -> dict[str, Any]:
    """One request to the server. Raises NightfillError with what it answered, NotFound where that is 404."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise BadSetting("--url is not an address such as http://127.0.0.1:8700, without credentials", param="url")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=wait_s)
    data = b"" if body is None else msgspec.json.encode(body)
    try:
        authorization = {"authorization": f"Bearer {key}"} if key else {}
        connection.request(method, path, data or None, {**authorization, **(headers or {})})
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as exc:
        why = getattr(exc, "strerror", None) or exc or type(exc).__name__
        raise NightfillError(f"no answer from {address}: {why}; is it running?") from exc
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
