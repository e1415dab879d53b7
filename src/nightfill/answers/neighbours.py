"""Near answers at work: an index that follows the book, and a reader of questions, in threads of their own.

One thread looks up, one keeps the index: a large batch or cells that are being made make no request wait. Requests
that would wait too long go to the engine instead, and so do all while the reader does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

from nightfill.answers.look import Result
from nightfill.errors import BadSetting, ReaderUnavailable, StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from nightfill.answers.cache import Neighbour
    from nightfill.answers.embed import Vectors
    from nightfill.answers.question import Question
    from nightfill.answers.reader import Reader
    from nightfill.state.answers import AnswerBook, AnswerKey, AnswerNote, AnswerScope

    Vector = NDArray[np.float32]

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)
_NEAREST: Final = 4
"""Looked at by the guard, best first."""
_MOST_WAITING: Final = 8
"""Look-ups; each takes milliseconds."""
_BATCH: Final = 8
"""Questions embedded together. More would take the processor away from live requests for longer."""
_PAGE: Final = 256
_FRESH: Final = 256
_SWEPT: Final = 500
"""Places of the index that are compared with the book in one round."""
_EVERY_S: Final = 0.5
_SAVE_EVERY_S: Final = 60.0
_STATE_S: Final = 10.0


class Index(Protocol):
    """Vectors of stored questions, as `answers.index.NearIndex` keeps them. `nearest` may be called from any thread."""

    @property
    def serial(self) -> int:
        """The newest that was added."""

    def holds(self, scope: AnswerScope) -> bool:
        """Whether there may be anything of the scope. Takes microseconds; from any thread."""

    def nearest(self, scope: AnswerScope, vector: Vectors, k: int = 8) -> Sequence[Neighbour]:
        """The nearest of the scope, the nearest first."""

    def add(self, notes: Sequence[AnswerNote], vectors: Vectors) -> None:
        """Add what the book told. Raises StateUnavailable."""

    def remove(self, keys: Sequence[AnswerKey]) -> int:
        """Forget answers. Raises StateUnavailable."""

    def keys(self, begin: int, count: int) -> Sequence[AnswerKey] | None:
        """Those in so many places from `begin` on; None at the end."""

    def save(self) -> None:
        """Write what changed. Raises StateUnavailable."""

    def close(self) -> None:
        """Leave its files to others. Idempotent."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What near look-ups need; takes seconds to load and some hundred megabytes to hold."""

    reader: Reader
    index: Index


class NearSearch:
    """Implements `cache.Neighbours`. For one event loop, as an asynchronous context manager.

    Nothing is loaded before it is needed, so that a gateway without near answers does not pay for them.
    """

    def __init__(
        self,
        book: AnswerBook,
        load: Callable[[], Parts],
        *,
        floor: float,
        deadline_s: float,
        needed: bool = False,
        every_s: float = _EVERY_S,
    ) -> None:
        """`load` runs in a thread, and may raise BadSetting, ReaderUnavailable or StateError. `floor`: less similar
        questions are not looked at. `deadline_s`: of one step in the thread. `needed`: load at once.
        """
        self._book = book
        self._load = load
        self._floor = floor
        self._deadline_s = deadline_s
        self._every_s = every_s
        self._parts: Parts | None = None
        self._failure = ""
        self._waiting = 0
        self._gone: list[AnswerKey] = []
        self._swept_to = 0
        self._fresh: dict[str, Vector] = {}
        """Vectors of questions that were asked last. Its methods are atomic: both threads use it."""
        self._needed, self._loaded, self._closing = asyncio.Event(), asyncio.Event(), asyncio.Event()
        if needed:
            self._needed.set()
        self._seeking = ThreadPoolExecutor(1, thread_name_prefix="nightfill-near")
        self._keeping = ThreadPoolExecutor(1, thread_name_prefix="nightfill-near-index")
        self._task: asyncio.Task[None] | None = None

    async def near(self, question: Question) -> tuple[Sequence[Neighbour], Result, str]:
        """See `Neighbours`."""
        parts = self._parts
        if parts is None:
            self._needed.set()
            return (), *((Result.BARRED, "not-installed") if self._failure else (Result.BUSY, "loading"))
        assert question.text is not None
        text, scope = question.text, question.scope
        if not parts.index.holds(scope):  # as of each further turn of a chat: nothing is worth embedding it for
            return (), Result.MISS, ""
        found = await self._sought(lambda: parts.index.nearest(scope, self._embedded(parts, text), _NEAREST))
        if isinstance(found, Result):
            return (), found, ""
        found = [one for one in found if one.similarity >= self._floor]
        return found, Result.HIT if found else Result.MISS, ""

    async def passing(self, asked: str, stored: Sequence[str]) -> tuple[int | None, Result, str]:
        """See `Neighbours`."""

        parts = self._parts
        if parts is None:
            return None, Result.BUSY, "loading"

        verdict = await self._sought(lambda: parts.reader.judge(asked, stored))
        if isinstance(verdict, Result):
            return None, verdict, ""
        place, reason = verdict
        return place, Result.GUARD if place is None else Result.HIT, reason

    def gone(self, key: AnswerKey) -> None:
        """See `Neighbours`."""
        self._gone.append(key)

    async def likeness(self, one: str, other: str) -> float | None:
        """The cosine of two texts, up to 1; None while nothing is loaded or reads. Takes its time."""
        if self._parts is None:
            return None
        reader = self._parts.reader
        try:
            vectors = await self._kept(lambda: reader.embed([one, other]))
        except ReaderUnavailable:
            return None
        return min(1.0, float(vectors[0] @ vectors[1]))

    async def ready(self) -> None:
        """Wait until it is loaded, or known that it cannot be. Raises BadSetting then."""
        self._needed.set()
        await self._loaded.wait()
        if self._failure:
            raise BadSetting(self._failure, param="answers.mode")

    def _embedded(self, parts: Parts, text: str) -> Vector:
        vector: Vector = parts.reader.embed([text])[0]
        # What is not found is soon stored, and then wanted again.
        self._fresh[text] = vector
        if len(self._fresh) > _FRESH:
            self._fresh.pop(next(iter(self._fresh)), None)
        return vector

    async def _sought(self, work: Callable[[], T]) -> T | Result:
        """Do `work` in the thread for look-ups; BUSY or LATE when that would take too long, BUSY without a reader."""
        if self._waiting >= _MOST_WAITING:
            return Result.BUSY
        self._waiting += 1
        loop = asyncio.get_running_loop()
        future = self._seeking.submit(work)
        # The thread goes on with what nobody waits for any more: its place is taken until it is through.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done) if not loop.is_closed() else None)
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            return Result.LATE
        except ReaderUnavailable:
            return Result.BUSY

    def _done(self) -> None:
        self._waiting -= 1

    async def _kept(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._keeping, work)

    async def _run(self) -> None:
        await self._needed.wait()
        if self._closing.is_set():
            return
        try:
            parts = await self._kept(self._load)
        except (BadSetting, ReaderUnavailable, StateError) as exc:
            _LOG.warning("no near answers: %s", exc)
            self._failure = str(exc)
            return
        finally:
            self._loaded.set()
        self._parts = parts
        try:
            await self._follow(parts)
        finally:
            self._parts = None
            await self._kept(parts.reader.close)  # which waits for its process
            parts.index.close()

    async def _follow(self, parts: Parts) -> None:
        loop = asyncio.get_running_loop()
        saved_s = loop.time()
        failing = False
        while not self._closing.is_set():
            try:
                await self._kept(parts.reader.mend)
                await self._caught_up(parts)
                await self._swept(parts)
                if loop.time() - saved_s >= _SAVE_EVERY_S:
                    saved_s = loop.time()
                    await self._kept(parts.index.save)
                failing = False
            except (ReaderUnavailable, StateError, TimeoutError) as exc:
                if not failing:
                    _LOG.warning("the index of near answers is behind: %s", exc or "the state did not answer in time")
                failing = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._closing.wait()
        await self._kept(parts.index.save)

    async def _caught_up(self, parts: Parts) -> None:
        """Take in what the book has that the index has not, and out what the book no longer had."""
        if self._gone:
            gone, self._gone = self._gone, []
            await self._kept(lambda: parts.index.remove(gone))
        while not self._closing.is_set():
            async with asyncio.timeout(_STATE_S):
                notes = await self._book.after(parts.index.serial, limit=_PAGE)
            if not notes:
                return
            for start in range(0, len(notes), _BATCH):
                await self._kept(lambda some=notes[start : start + _BATCH]: self._add(parts, some))  # type: ignore[misc]

    def _add(self, parts: Parts, notes: Sequence[AnswerNote]) -> None:
        import numpy as np  # of the extra that the embedder needs too

        texts = [note.question for note in notes]
        known = {text: vector for text in texts if (vector := self._fresh.pop(text, None)) is not None}
        missing = list(dict.fromkeys(text for text in texts if text not in known))
        if missing:
            known.update(zip(missing, parts.reader.embed(missing), strict=True))
        parts.index.add(notes, np.stack([known[text] for text in texts]))

    async def _swept(self, parts: Parts) -> None:
        """Look through some of the index for answers that the book has no more: their vectors must not stay."""
        begin = self._swept_to
        keys = await self._kept(lambda: parts.index.keys(begin, _SWEPT))
        self._swept_to = 0 if keys is None else begin + _SWEPT
        async with asyncio.timeout(_STATE_S):
            gone = await self._book.gone(keys or ())
        if gone:
            await self._kept(lambda: parts.index.remove(gone))

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="near answers")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._closing.set()
        self._needed.set()
        try:
            await self._task
        except StateError as exc:
            _LOG.warning("the index of near answers was not saved: %s", exc)
        finally:
            self._seeking.shutdown(wait=True, cancel_futures=True)
            self._keeping.shutdown(wait=True, cancel_futures=True)
