"""Which LoRA adapters a request to llama.cpp is under. Pure.

llama.cpp has rules of its own, each seen by running it. A request that says nothing of adapters takes whatever KV its
slot has, under whichever adapter it was made. A request that names them all has its slot emptied if the slot's last one
named them otherwise, what was restored into it meanwhile included. What a request leaves out counts as 0, ids that do
not exist are passed over. So as soon as a server has adapters, each request names them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The weight of each adapter that the server has, by its place; nothing where it has none."""

    scales: tuple[float, ...] = ()
    check: Callable[[], None] = lambda: None
    """Raises EngineUnavailable when the server is not the one any more whose adapters these are."""

    @property
    def members(self) -> dict[str, Any]:
        """What they add to a request's body."""
        return (
            {"lora": [{"id": place, "scale": scale} for place, scale in enumerate(self.scales)]} if self.scales else {}
        )


NO_LORA: Final = Lora()
PRIMER: Final = (0,)
"""A token to begin with, in a slot whose next request is under other adapters."""
