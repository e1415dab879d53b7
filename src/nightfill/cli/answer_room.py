"""What stored answers are made of: for the gateway that serves them, and for the worker that prepares them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from nightfill.answers.neighbours import NearSearch, Parts
from nightfill.answers.question import Questions
from nightfill.cli.upkeep import running
from nightfill.cli.workspace import text_seal
from nightfill.errors import StateError
from nightfill.gateway.stored import AnswerRoom
from nightfill.kv import derived_secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nightfill.cli.rooms import Rooms
    from nightfill.config import AnswerSettings, Settings
    from nightfill.state.answers import AnswerBook
    from nightfill.state.seal import RenewableSeal

_LOG: Final = logging.getLogger(__name__)
_PRUNE_EVERY_S: Final = 600.0
_PRUNE_S: Final = 60.0
INDEX_FOLDER: Final = "near"
"""Under the data folder."""


def make_questions(settings: Settings) -> Questions:
    """The same for all processes of one state, or their keys differ. Raises BadSetting."""
    return Questions(
        secret=derived_secret(settings.kv, b"nightfill.answers.1"), max_temperature=settings.answers.max_temperature
    )


@contextlib.asynccontextmanager
async def answer_room(rooms: Rooms) -> AsyncIterator[AnswerRoom]:
    """Stored answers as the settings have them, while inside.

    Raises BadSetting, also where near answers are wanted and what they need is not installed. Contexts that want them
    by their own options alone do without then.
    """
    settings = rooms.settings.answers
    search = NearSearch(
        rooms.state.answers,
        lambda: _parts(settings, rooms.data_dir / INDEX_FOLDER, text_seal(rooms.settings.kv)),
        floor=settings.min_similarity,
        deadline_s=settings.near_timeout_s,
        needed=settings.compares,
    )
    async with search, running(_pruned(rooms.state.answers), name="prune answers"):
        if settings.compares:
            await search.ready()
        yield AnswerRoom(
            settings=settings,
            answers=rooms.state.answers,
            questions=rooms.state.questions,
            keys=make_questions(rooms.settings),
            neighbours=search,
        )


async def _pruned(book: AnswerBook) -> None:
    """Have what is too old to be served removed, now and then."""
    while True:
        try:
            async with asyncio.timeout(_PRUNE_S):
                await book.prune()
        except (StateError, TimeoutError) as exc:
            _LOG.warning("old answers were not removed: %s", exc or f"not done within {_PRUNE_S:g} s")
        await asyncio.sleep(_PRUNE_EVERY_S)


def _parts(settings: AnswerSettings, folder: Path, seal: RenewableSeal | None) -> Parts:
    from nightfill.answers.reader_process import ReaderProcess

    reader = ReaderProcess.started(settings.embedding)
    try:
        from nightfill.answers.index import NearIndex  # needs numpy, which the reader has asked for

        return Parts(reader, NearIndex(folder, identity=reader.identity, capacity=settings.max_answers, seal=seal))
    except BaseException:
        reader.close()
        raise
