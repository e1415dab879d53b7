"""What the gateway's layer of stored answers is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.gateway.stored import AnswerRoom
from nightfill.kv import derived_secret

if TYPE_CHECKING:
    from nightfill.cli.rooms import Rooms


def answer_room(rooms: Rooms) -> AnswerRoom:
    """Stored answers as the settings have them. Raises BadSetting."""
    settings = rooms.settings
    return AnswerRoom(
        settings=settings.answers,
        answers=rooms.state.answers,
        questions=rooms.state.questions,
        secret=derived_secret(settings.kv, b"nightfill.answers.1"),
    )
