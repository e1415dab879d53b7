"""Deletion that is complete: from all tiers, and where one is out of reach, as soon as it is back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from nightfill.errors import KvError, StateError
from nightfill.kv.holdings import keys_of, unshared
from nightfill.kv.key import BlockKey

if TYPE_CHECKING:
    from nightfill.cli.rooms import Rooms
    from nightfill.contexts.context import Fill

_LOG: Final = logging.getLogger(__name__)
_AGAIN_EVERY_S: Final = 10.0
_BATCH: Final = 4096


class Forgotten(NamedTuple):
    """What became of a fill's blocks."""

    dropped: int
    why_left: str
    """Empty, or why some may still lie in a tier; they are deleted once it answers."""


async def forget_fill(rooms: Rooms, fill: Fill) -> Forgotten:
    """Drop the bytes of a fill that no context needs any more, from all tiers.

    A tier out of reach is no failure: what is to go is written down first, and `settling` goes on with it.
    """
    others = await rooms.state.book.fills(fill.key.tenant)
    keys = await asyncio.to_thread(unshared, fill, others, block_tokens=rooms.settings.kv.block_tokens)
    await rooms.state.deletions.owe(keys)
    try:
        dropped = await asyncio.to_thread(rooms.store.drop, keys)
    except KvError as exc:
        _LOG.warning("what was deleted may still lie in a tier, and is deleted once that answers: %s", exc)
        return Forgotten(0, str(exc))
    await rooms.state.deletions.settle(keys)
    return Forgotten(dropped, "")


async def settle_deletions(rooms: Rooms) -> int:
    """Delete what is still owed, but for what is wanted again; how many blocks were. Raises KvError, StateError."""
    settled = 0
    while owed := await rooms.state.deletions.keys(limit=_BATCH):
        fills = await rooms.state.book.fills()
        doomed = await asyncio.to_thread(_unnamed, owed, fills, rooms.settings.kv.block_tokens)
        await asyncio.to_thread(rooms.store.drop, doomed)
        await rooms.state.deletions.settle(owed)
        settled += len(owed)
    if settled:
        _LOG.info("what was deleted is gone from all tiers: %d blocks", settled)
    return settled


async def settling(rooms: Rooms, stop: asyncio.Event) -> None:
    """`settle_deletions`, again and again until `stop`."""
    said = ""
    while not stop.is_set():
        try:
            await settle_deletions(rooms)
            said = ""
        except (KvError, StateError) as exc:
            if str(exc) != said:
                _LOG.warning("what was deleted may still lie in a tier: %s", exc)
            said = str(exc)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN_EVERY_S):
                await stop.wait()


def _unnamed(owed: list[bytes], fills: list[Fill], block_tokens: int) -> list[BlockKey]:
    named = {key for fill in fills for key in keys_of(fill, block_tokens=block_tokens)}
    return [BlockKey(key) for key in owed if key not in named]
