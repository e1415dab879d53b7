"""Writes answers behind the requests: what passed by is put together, checked and stored by a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from nightfill.answers.reply import Kept, Unfit, keep
from nightfill.errors import StateError
from nightfill.state.answers import Answer, Origin
from nightfill.state.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nightfill.answers.question import Ground, Question
    from nightfill.answers.reply import Recording
    from nightfill.contexts.context import ContextName, Tenant
    from nightfill.engines.engine import Tokens
    from nightfill.state.answers import AnswerBook, AnswerKey, Asked, QuestionLog

_LOG: Final = logging.getLogger(__name__)
_MAX_WAITING: Final = 512
_MAX_WAITING_BYTES: Final = 64 << 20
_TOGETHER: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposit:
    """A reply that passed by, and what it answers."""

    ground: Ground
    question: Question
    model: str
    recording: Recording
    tokens: Tokens
    ttl_s: float
    judge: Callable[[Kept | Unfit], Awaitable[bool]] | None = None
    """Told of the reply before it is stored; False: it is not to be."""


class Keeper:
    """A bounded buffer in front of the answers and questions of the state. For one event loop.

    What does not fit in, or cannot be written, is dropped and counted: an answer is worth no more than its making.
    Use as an asynchronous context manager; leaving it writes out what is left, for at most `close_s` seconds.
    """

    def __init__(
        self,
        answers: AnswerBook,
        questions: QuestionLog,
        *,
        max_answer_bytes: int,
        on_outcome: Callable[[str], None],
        every_s: float = 0.05,
        write_s: float = 5.0,
        close_s: float = 2.0,
    ) -> None:
        """`on_outcome` is told `stored`, or why a reply was not."""
        self._answers = answers
        self._questions = questions
        self._max_answer_bytes = max_answer_bytes
        self._on_outcome = on_outcome
        self._write_s = write_s
        self._writer = Writer(self._write_all, name="keep answers", every_s=every_s, close_s=close_s)
        self._deposits: deque[Deposit] = deque()
        self._waiting_bytes = 0
        self._keys: set[AnswerKey] = set()
        """Of what waits, judgements left aside."""
        self._served: Counter[AnswerKey] = Counter()
        self._asked: dict[tuple[Tenant, ContextName], list[Asked]] = {}
        self._failing = False

    def keep(self, deposit: Deposit) -> bool:
        """Take a reply in; False when there is no room. Never blocks."""
        size, key = deposit.recording.size, deposit.question.key
        if deposit.judge is None and key in self._keys:
            self._on_outcome("double")  # many asked the same at once, and one reply is as good as another
            return True
        if len(self._deposits) >= _MAX_WAITING or self._waiting_bytes + size > _MAX_WAITING_BYTES:
            self._on_outcome("full")
            return False
        self._deposits.append(deposit)
        self._waiting_bytes += size
        if deposit.judge is None:
            self._keys.add(key)
        self._writer.note()
        return True

    def served(self, key: AnswerKey) -> None:
        """An answer served once more. Never blocks."""
        if key in self._served or len(self._served) < _MAX_WAITING:
            self._served[key] += 1
            self._writer.note()

    def asked(self, tenant: Tenant, context: ContextName, asked: Asked) -> None:
        """A question was asked of a context. Never blocks."""
        waiting = self._asked.get((tenant, context), [])
        if len(waiting) < _MAX_WAITING and (waiting or len(self._asked) < _MAX_WAITING):
            waiting.append(asked)
            self._asked[tenant, context] = waiting
            self._writer.note()

    async def flush(self) -> None:
        """Wait until all that came in by now is written or dropped."""
        await self._writer.flush()

    async def _write_all(self) -> None:
        served, self._served = self._served, Counter()
        if served:
            await self._written(self._answers.served(list(served.elements())))
        while self._asked:
            (tenant, context), questions = self._asked.popitem()
            await self._written(self._questions.note(tenant, context, questions))
        while self._deposits:
            some = [self._deposits.popleft() for _ in range(min(_TOGETHER, len(self._deposits)))]
            try:
                kept = await asyncio.to_thread(lambda: [self._checked(one) for one in some])  # noqa: B023 - awaited
                pairs = list(zip(some, kept, strict=True))
                await asyncio.gather(*(self._deposit(*pair) for pair in pairs if pair[0].judge is None))
                for deposit, reply in pairs:  # a judge looks things up, for which there is one thread
                    if deposit.judge is not None:
                        await self._deposit(deposit, reply)
            finally:
                self._waiting_bytes -= sum(one.recording.size for one in some)
                self._keys.difference_update(one.question.key for one in some)

    def _checked(self, deposit: Deposit) -> Kept | Unfit:
        bounded = deposit.question.max_tokens is not None
        return keep(deposit.recording, deposit.tokens, bounded=bounded, max_bytes=self._max_answer_bytes)

    async def _deposit(self, deposit: Deposit, kept: Kept | Unfit) -> None:
        try:
            if deposit.judge is not None and not await deposit.judge(kept):
                return
            if isinstance(kept, Unfit):
                self._on_outcome(kept)
                return
            stored = await self._written(self._answers.put(_answer(deposit, kept)))
            if stored is not None:
                self._on_outcome("stored" if stored else "overtaken")
        except Exception:  # noqa: BLE001
            # The outermost frame of this one: the others are not concerned.
            _LOG.exception("an answer was not stored")
            self._on_outcome("failed")

    async def _written(self, write: Awaitable[object]) -> object:
        """The outcome of a write; None, and a word in the log, when it failed."""
        try:
            async with asyncio.timeout(self._write_s):
                outcome = await write
        except (StateError, TimeoutError) as exc:
            if not self._failing:
                _LOG.warning("answers are not stored: %s", exc or f"no answer within {self._write_s:g} s")
            self._failing = True
            self._on_outcome("failed")
            return None
        self._failing = False
        return outcome

    async def __aenter__(self) -> Self:
        await self._writer.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._writer.__aexit__(*error)


def _answer(deposit: Deposit, kept: Kept) -> Answer:
    ground, question = deposit.ground, deposit.question
    return Answer(
        key=question.key,
        scope=question.scope,
        tenant=ground.tenant,
        context=ground.context,
        fingerprint=ground.fingerprint,
        model=deposit.model,
        question=(question.text or "") if kept.to_its_end else "",
        body=kept.body,
        origin=Origin.LIVE,
        at_s=0,
        ttl_s=deposit.ttl_s,
    )
