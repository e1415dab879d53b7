"""Looking for a stored answer: an equal request's, then a near one's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from nightfill.answers.look import Found, Kind, Look, Result
from nightfill.answers.reply import words_of
from nightfill.errors import StateError
from nightfill.state.bounded import within

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.answers.question import Question
    from nightfill.state.answers import Answer, AnswerBook, AnswerKey

_STATE_S: Final = 0.25
"""For the store to answer; then the request goes on without it."""
_AWAY_S: Final = 1.0
"""So long a store that failed is not asked."""


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
    """Finds stored questions that are near, off the event loop, and bounded in time. Never raises a NightfillError."""

    async def near(self, question: Question) -> tuple[Sequence[Neighbour], Result, str]:
        """Some of the question's scope, the nearest first, and `HIT`; else why there are none, and a word of detail."""

    async def passing(self, asked: str, stored: Sequence[str]) -> tuple[int | None, Result, str]:
        """Which of the stored questions is the first that the guard lets pass; else `GUARD` with what it has against
        the nearest, or why it was not asked.
        """

    def gone(self, key: AnswerKey) -> None:
        """An answer that is near is no longer in the book."""

    async def likeness(self, one: str, other: str) -> float | None:
        """How much alike two texts are, up to 1; None while that cannot be told."""


class AnswerCache:
    """Looks answers up, and fails open. Used by one event loop."""

    def __init__(
        self,
        book: AnswerBook,
        *,
        neighbours: Neighbours | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives Unix seconds, as the book's does."""
        self._book = book
        self._neighbours = neighbours
        self._clock, self._steady = clock, steady
        self._away_until_s = float("-inf")

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

    async def alike(self, one: bytes, other: bytes) -> float | None:
        """How much two replies say the same: 1 for equal words, else the cosine of their embeddings, the least of all
        choices'; None where that cannot be told. Takes its time: not for the path of a request.
        """
        ones, others = words_of(one), words_of(other)
        if ones == others:
            return 1.0
        if len(ones) != len(others) or self._neighbours is None:
            return None
        found = [await self._neighbours.likeness(*pair) for pair in zip(ones, others, strict=True)]
        return min((one for one in found if one is not None), default=None)

    async def _near(self, question: Question, max_age_s: float | None) -> tuple[Found | None, Result, str]:
        if question.bar is not None:
            return None, Result.BARRED, question.bar
        if self._neighbours is None:
            return None, Result.BARRED, "not-installed"
        neighbours, result, detail = await self._neighbours.near(question)
        some: list[Found] = []
        for neighbour in neighbours:
            # The index is behind the book: only the book knows whether the answer is still there.
            found, result = await self._got(neighbour.key, max_age_s, similarity=neighbour.similarity)
            if found is None:
                if result is Result.MISS:
                    self._neighbours.gone(neighbour.key)
            elif found.answer.scope == question.scope and found.answer.question:
                some.append(found)
        if not some:
            return None, result if result is not Result.HIT else Result.MISS, detail
        assert question.text is not None
        place, result, detail = await self._neighbours.passing(question.text, [one.answer.question for one in some])
        if place is None:
            return None, result, detail
        if not _fits(some[place].answer, question.max_tokens):
            return None, Result.MISS, "length"
        return some[place], Result.HIT, ""

    async def _got(
        self, key: AnswerKey, max_age_s: float | None, *, similarity: float | None = None
    ) -> tuple[Found | None, Result]:
        if self._steady() < self._away_until_s:
            return None, Result.FAILED
        try:
            answer = await within(_STATE_S, self._book.get(key))
        except (StateError, TimeoutError):
            # Each request would wait as long, and none of them has a use of it.
            self._away_until_s = self._steady() + _AWAY_S
            return None, Result.FAILED
        if answer is None:
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
