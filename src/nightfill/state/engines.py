"""What was last seen of each engine, so that a plan can be made while none runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineNote:
    """An engine's description as its own room wrote it down: a flat JSON object."""

    name: str
    body: Mapping[str, str | int | bool]
    seen_at_s: float
    """Unix seconds of the last `put`."""


class EngineBook(Protocol):
    """Notes by engine name. Raises StateUnavailable."""

    async def put(self, name: str, body: Mapping[str, str | int | bool]) -> None:
        """Write or replace the note."""

    async def get(self, name: str) -> EngineNote | None:
        """The note, or None."""

    async def notes(self) -> list[EngineNote]:
        """All notes, by name."""

    async def forget(self, name: str) -> bool:
        """Drop the note; False when there is none."""
