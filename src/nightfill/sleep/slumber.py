"""Which models are awake, as their gateway says: work on one that sleeps waits.

A worker has a copy of the model of its own, which needs not be in memory while nobody uses the model. In a window, or
where somebody asked for the work, it is done all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nightfill.state.engines import EngineBook, EngineNote

TELL_EVERY_S: Final = 30.0
_TOLD_S: Final = 3 * TELL_EVERY_S
_NOTE: Final = "sleep of "
_AWAKE: Final = "awake"


async def tell(book: EngineBook, engine: str, *, awake: bool) -> None:
    """Say it to all workers; to be repeated every `TELL_EVERY_S`. Raises StateUnavailable."""
    await book.put(f"{_NOTE}{engine}", {_AWAKE: awake})


def awake_of(notes: Iterable[EngineNote], *, now_s: float) -> frozenset[str]:
    """The engines whose model is awake by the last word of a gateway that is still there. `now_s`: Unix seconds."""
    return frozenset(
        note.name.removeprefix(_NOTE)
        for note in notes
        if note.name.startswith(_NOTE) and note.body.get(_AWAKE) is True and now_s - note.seen_at_s < _TOLD_S
    )
