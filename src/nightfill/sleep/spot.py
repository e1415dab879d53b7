"""Notices that a spot machine is about to be taken away, from the cloud's metadata address."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from nightfill.errors import NightfillError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_log = logging.getLogger(__name__)

POLL_S: Final = 5.0
"""As the clouds recommend. The shortest notice, 30 s, leaves a worker five times its usual grace."""
ASK_WITHIN_S: Final = 2.0
_TOKEN_PATH: Final = "/latest/api/token"  # noqa: S105 - a path
_TOKEN_FOR_S: Final = 60
"""A new one for each question: there is none to expire then."""


class Ask(Protocol):
    """One small HTTP call to the metadata address."""

    async def __call__(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body, within `ASK_WITHIN_S`. Raises NightfillError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """Where a cloud says it, and how."""

    url: str
    """Where to ask, unless another address is set."""
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    name_path: str = ""
    """Where the machine's own name is told, for clouds that tell a machine of its neighbours' notices too."""
    token: bool = False
    """A token is to be fetched first, and goes with each question."""


CLOUDS: Final[Mapping[str, Cloud]] = {
    "aws": Cloud(url="http://169.254.169.254", path="/latest/meta-data/spot/instance-action", token=True),
    "gcp": Cloud(
        url="http://metadata.google.internal",
        path="/computeMetadata/v1/instance/preempted",
        headers={"metadata-flavor": "Google"},
    ),
    "azure": Cloud(
        url="http://169.254.169.254",
        path="/metadata/scheduledevents?api-version=2020-07-01",
        headers={"metadata": "true"},
        name_path="/metadata/instance/compute/name?api-version=2021-02-01&format=text",
    ),
}
"""By the names that the setting `sleep.spot` has for them."""


def notice(cloud: str, status: int, body: bytes, *, machine: str = "") -> str | None:
    """What an answer says of this machine's end, for the log; None where it says that none is near.

    `machine` is its name; empty: unknown, so each notice is ours. Raises ValueError for what is no such answer.
    """
    if cloud == "aws" and status == 404:
        return None
    if status != 200:
        raise ValueError(f"status {status}")
    if cloud == "gcp":
        said = body.strip().upper()
        if said not in (b"TRUE", b"FALSE"):
            raise ValueError("neither TRUE nor FALSE")
        return "preempted" if said == b"TRUE" else None
    try:
        found: Any = msgspec.json.decode(body)
        if cloud == "aws":
            return f"{found['action']} at {found['time']}"
        ends = [
            f"preempted, not before {event.get('NotBefore') or 'now'}"
            for event in found["Events"]
            if event["EventType"] == "Preempt" and (not machine or machine in event.get("Resources", [machine]))
        ]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as exc:
        raise ValueError("not the JSON that was expected") from exc
    return ends[0] if ends else None


class SpotWatch:
    """Asks one cloud again and again. For one task."""

    def __init__(self, cloud: str, ask: Ask, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._name = cloud
        self._cloud = CLOUDS[cloud]
        self._ask = ask
        self._sleep = sleep
        self._machine = ""
        self._failing = False

    async def noticed(self) -> str:
        """What the notice says, once there is one. An address that fails is asked again, and never ends the wait."""
        while True:
            try:
                found = await self._once()
            except (NightfillError, ValueError) as exc:
                if not self._failing:
                    _log.warning(
                        "spot notices of %s cannot be read, asked again every %g s: %s", self._name, POLL_S, exc
                    )
                self._failing = True
            else:
                if self._failing:
                    _log.info("spot notices of %s can be read again", self._name)
                self._failing = False
                if found is not None:
                    return found
            await self._sleep(POLL_S)

    async def _once(self) -> str | None:
        cloud, headers = self._cloud, dict(self._cloud.headers)
        if cloud.token:
            ttl = {"x-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_FOR_S)}
            headers["x-aws-ec2-metadata-token"] = await self._text("PUT", _TOKEN_PATH, ttl)
        if cloud.name_path and not self._machine:
            self._machine = await self._text("GET", cloud.name_path, headers)
        status, body = await self._ask("GET", cloud.path, headers)
        return notice(self._name, status, body, machine=self._machine)

    async def _text(self, method: str, path: str, headers: Mapping[str, str]) -> str:
        status, body = await self._ask(method, path, headers)
        text = body.decode("ascii", "replace").strip()
        # It becomes a header: nothing that could end one may be in it.
        if status != 200 or not text.isprintable() or not 0 < len(text) <= 4096:
            raise ValueError(f"status {status} at {path.partition('?')[0]}")
        return text
