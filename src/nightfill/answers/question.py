"""What a request asks, as stored answers are looked up by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nightfill.state.answers import AnswerKey, AnswerScope


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request, as far as answers go."""

    key: AnswerKey
    scope: AnswerScope
    text: str | None
    """The last user message; None where a near answer may not serve (tools, high temperature, several choices, parts
    that are no text).
    """
