"""What stored answers are made of: for the gateway that serves them, and for the worker that prepares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.answers.question import Questions
from nightfill.gateway.stored import AnswerRoom
from nightfill.kv import derived_secret

if TYPE_CHECKING:
    from nightfill.cli.rooms import Rooms
    from nightfill.config import Settings


def make_questions(settings: Settings) -> Questions:
    """The same for all processes of one state, or their keys differ. Raises BadSetting."""
    return Questions(
        secret=derived_secret(settings.kv, b"nightfill.answers.1"), max_temperature=settings.answers.max_temperature
    )


def answer_room(rooms: Rooms) -> AnswerRoom:
    """Stored answers as the settings have them. Raises BadSetting."""
    return AnswerRoom(
        settings=rooms.settings.answers,
        answers=rooms.state.answers,
        questions=rooms.state.questions,
        keys=make_questions(rooms.settings),
    )
