"""Looking for a stored answer: an equal request's, then a near one's."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from nightfill.answers.look import Found, Kind, Look, Result
from nightfill.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.answers.question import Question
    from nightfill.state.answers import Answer, AnswerBook, AnswerKey

_STATE_S: Final = 0.25
"""For the store to answer; then the request goes on without it."""


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Counted(msgspec.Struct):
    usage: _Usage


_counted = msgspec.json.Decoder(_Counted)


class Neighbour(Protocol):
    """A stored question that is near the one that is asked."""

    @property
    def key(self) -> AnswerKey:
        """Of its answer."""

    @property
    def similarity(self) -> float:
        """Of the two questions, up to 1."""


class Neighbours(Protocol):
    """Finds stored questions of the same scope that the guard lets pass. Used by one event loop."""

    async def near(self, question: Question) -> tuple[Sequence[Neighbour], Result, str]:
        """Those whose answers may serve, best first, `HIT` if there are any; else why there are none, and a word of
        detail. Never raises a NightfillError.
        """


class AnswerCache:
    """Looks answers up, and fails open. Used by one event loop."""

    def __init__(
        self, book: AnswerBook, *, neighbours: Neighbours | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._book = book
        self._neighbours = neighbours
        self._clock = clock

    async def exact(self, question: Question, *, max_age_s: float | None, began_s: float) -> tuple[Found | None, Look]:
        """The answer to an equal request. `began_s`: `time.perf_counter` when the look-up began, the making of the
        key included.
        """
        found, result = await self._got(question.key, max_age_s)
        return found, Look(kind=Kind.EXACT, result=result, seconds=time.perf_counter() - began_s)

    async def near(self, question: Question, *, max_age_s: float | None) -> tuple[Found | None, Look]:
        """The answer to a question that means the same."""
        began_s = time.perf_counter()
        found, result, detail = await self._near(question, max_age_s)
        return found, Look(kind=Kind.NEAR, result=result, seconds=time.perf_counter() - began_s, detail=detail)

    async def _near(self, question: Question, max_age_s: float | None) -> tuple[Found | None, Result, str]:
        if question.bar is not None:
            return None, Result.BARRED, question.bar
        if self._neighbours is None:
            return None, Result.BARRED, "not-installed"
        neighbours, result, detail = await self._neighbours.near(question)
        for neighbour in neighbours:
            # The index is behind the book: only the book knows whether the answer is still there.
            found, result = await self._got(
                neighbour.key, max_age_s, scope_of=question, similarity=neighbour.similarity
            )
            if found is not None and _fits(found.answer, question.max_tokens):
                return found, Result.HIT, ""
            detail = "" if found is None else "length"
            result = result if found is None else Result.MISS
        return None, result, detail

    async def _got(
        self,
        key: AnswerKey,
        max_age_s: float | None,
        *,
        scope_of: Question | None = None,
        similarity: float | None = None,
    ) -> tuple[Found | None, Result]:
        try:
            async with asyncio.timeout(_STATE_S):
                answer = await self._book.get(key)
        except (StateError, TimeoutError):
            return None, Result.FAILED
        if answer is None or (scope_of is not None and (answer.scope != scope_of.scope or not answer.question)):
            return None, Result.MISS
        age_s = max(0.0, self._clock() - answer.at_s)
        if max_age_s is not None and age_s > max_age_s:
            return None, Result.STALE
        return Found(answer=answer, age_s=age_s, similarity=similarity), Result.HIT


def _fits(answer: Answer, max_tokens: int | None) -> bool:
    """Whether a reply that another request was given is as short as this one asks for."""
    if max_tokens is None:
        return True
    try:
        tokens = _counted.decode(answer.body).usage.completion_tokens
    except msgspec.DecodeError:
        return False
    return tokens is not None and tokens <= max_tokens
