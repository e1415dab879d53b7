"""Objects in a bucket of an S3-compatible store; the one module that knows obstore.

Each request is over within about twice `timeout_s`. After one that failed all others fail at once for a second, then
two, up to half a minute, until one succeeds: a store that is gone costs requests next to nothing.
"""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from nightfill.errors import BadSetting, TierUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_FIRST_REST_S: Final = 1.0
_LONGEST_REST_S: Final = 30.0
_CHUNK: Final = 8 << 20
_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the objects lie; without credentials, which come from the AWS_* variables or the host's own role."""

    bucket: str
    prefix: str
    endpoint: str = ""
    region: str = ""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" + (f" at {self.endpoint}" if self.endpoint else "")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a listing tells of one object."""

    path: str
    size_bytes: int
    modified_s: float
    """Unix seconds, by the store's clock."""


def parse_address(url: str, *, endpoint: str, region: str, param: str) -> Address:
    """`s3://bucket/prefix`, and `http(s)://host[:port]` as the endpoint. Raises BadSetting, which names `param`."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
        raise BadSetting(f"{param}: want s3://bucket/prefix, without credentials", param=param)
    if endpoint:
        host = urlsplit(endpoint)
        if host.scheme not in {"http", "https"} or not host.hostname or host.username or host.password:
            where = param.removesuffix("url") + "endpoint"
            raise BadSetting(f"{where}: want http(s)://host:port, without credentials", param=where)
    return Address(bucket=parts.netloc, prefix=parts.path.strip("/"), endpoint=endpoint, region=region)


class Objects:
    """Objects by path below the prefix. Safe to use from any thread; `connections` requests run side by side.

    Every method raises TierUnavailable when the store fails, refuses or stays silent; no message names credentials.
    """

    def __init__(self, address: Address, *, name: str, connections: int, timeout_s: float) -> None:
        self._address = address
        self._name = name
        self._timeout_s = timeout_s
        self._free = threading.BoundedSemaphore(connections)
        self._lock = threading.Lock()
        """Guards what follows."""
        self._failures = 0
        self._rests_until_s = 0.0
        self._down = ""
        patience = timedelta(seconds=timeout_s)
        client: dict[str, Any] = {"timeout": patience, "connect_timeout": patience}
        config: dict[str, Any] = {"region": address.region} if address.region else {}
        if address.endpoint:
            config["endpoint"] = address.endpoint
            if address.endpoint.startswith("http://"):
                client["allow_http"] = True
            if urlsplit(address.endpoint).hostname in _LOOPBACK:
                client["proxy_excludes"] = "*"
        self._store = S3Store(
            address.bucket,
            prefix=address.prefix or None,
            client_options=client,  # type: ignore[arg-type] # a TypedDict
            retry_config={
                "max_retries": 2,
                "retry_timeout": patience,
                "backoff": {
                    "init_backoff": timedelta(seconds=0.05),
                    "max_backoff": timedelta(seconds=0.5),
                    "base": 2,
                },
            },
            **config,
        )

    def read(self, path: str, room_for: Callable[[int], memoryview]) -> memoryview | None:
        """The object, in the view that `room_for` gives for its length; None when there is none."""
        with self._request():
            try:
                found = obstore.get(self._store, path)
            except FileNotFoundError:
                return None
            out = room_for(found.meta["size"])
            done = 0
            for chunk in found.stream(min_chunk_size=_CHUNK):
                if done + len(chunk) > len(out):
                    break
                out[done : done + len(chunk)] = memoryview(chunk)
                done += len(chunk)
            if done != len(out):
                raise TierUnavailable(f"{self._name}: {done} of {len(out)} bytes came of an object of {self._address}")
            return out

    def write(self, path: str, data: memoryview | bytes) -> None:
        """Store an object whole, in place of one that is there."""
        with self._request():
            obstore.put(self._store, path, data, use_multipart=False)

    def size(self, path: str) -> int | None:
        """Its length; None when there is none."""
        with self._request():
            try:
                return obstore.head(self._store, path)["size"]
            except FileNotFoundError:
                return None

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects; those that are not there are no error."""
        with self._request():
            obstore.delete(self._store, list(paths))

    def list(self, prefix: str) -> list[Stored]:
        """All objects below `prefix`."""
        with self._request():
            return [
                Stored(found["path"], found["size"], found["last_modified"].timestamp())
                for page in obstore.list(self._store, prefix)
                for found in page
            ]

    @contextmanager
    def _request(self) -> Iterator[None]:
        with self._lock:
            if time.monotonic() < self._rests_until_s:
                raise TierUnavailable(f"{self._name}: {self._address} failed a moment ago: {self._down}")
        if not self._free.acquire(timeout=self._timeout_s):
            raise TierUnavailable(f"{self._name}: all connections to {self._address} stayed in use")
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            # OSError covers those of its kinds that obstore raises: missing, refused.
            reason = _reason(error)
            self._failed(reason)
            raise TierUnavailable(f"{self._name}: {self._address}: {reason}") from error
        except TierUnavailable as error:
            self._failed(str(error))
            raise
        else:
            with self._lock:
                self._failures = 0
        finally:
            self._free.release()

    def _failed(self, reason: str) -> None:
        with self._lock:
            self._down = reason
            rest_s = min(_FIRST_REST_S * 2 ** min(self._failures, 10), _LONGEST_REST_S)
            self._failures += 1
            self._rests_until_s = time.monotonic() + rest_s


def _reason(error: Exception) -> str:
    """What went wrong, in words of our own: those of the library quote requests and answers."""
    text = str(error)
    if status := re.search(r"\b([45]\d\d) [A-Z][a-z]+", text):
        return f"the store answered {status[0]}"
    if isinstance(error, FileNotFoundError):
        return "no such bucket"
    lowered = text.lower()
    for sign, words in (
        ("timed out", "no answer in time"),
        ("timeout", "no answer in time"),
        ("connection refused", "connection refused"),
        ("credential", "no usable credentials"),
        ("dns", "unknown host"),
        ("connect", "no connection"),
        ("decoding response body", "the answer broke off"),
    ):
        if sign in lowered:
            return words
    return type(error).__name__
