"""Blocks that are to be deleted and may still lie in a tier, so that no restart forgets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


class Owed(NamedTuple):
    """What is still to be deleted."""

    blocks: int
    since_s: float | None
    """When the oldest of them was to go, Unix seconds; None where there is none."""


class Deletions(Protocol):
    """Names of blocks, which tell nothing of what is in them. Raises StateUnavailable when the state fails."""

    async def owe(self, keys: Iterable[bytes]) -> None:
        """Write down that these are to go."""

    async def settle(self, keys: Iterable[bytes]) -> None:
        """They are gone from all tiers, or wanted again."""

    async def keys(self, *, limit: int) -> list[bytes]:
        """The oldest ones."""

    def owed(self) -> Owed:
        """How many there are, and since when; perhaps as the last call of `keys` found it. Quick, from any thread."""
