"""One fill looked over: is what is stored of it what the engine computes?"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.contexts.context import DRIFTED, FillState
from nightfill.engines.engine import Prefix, Reuse, Way
from nightfill.errors import NightfillError
from nightfill.kv.key import salt_of
from nightfill.sleep.fidelity import Outcome, Question, Verdict, equal, judge, tails
from nightfill.sleep.fill import Gone, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightfill.contexts.context import Fill, FillKey
    from nightfill.engines.engine import Engine, Sampled, Sampler
    from nightfill.sleep.gatekeeper import Gatekeeper
    from nightfill.state.answers import AnswerBook
    from nightfill.state.book import ContextBook

_log = logging.getLogger(__name__)

MOST_CUTS: Final = 8
"""So often live requests may cut one continuation short before the whole is given up for this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """How much is compared."""

    questions: int = 3
    max_tokens: int = 16
    """Of each continuation."""
    noise: bool = True
    """Measure the noise in any case; else only where loaded KV is not the engine's own to the last bit."""


AUDIT: Final = Scope(questions=2, noise=False)
"""What is enough for one of many looks."""


@dataclass(frozen=True, slots=True)
class Crowded:
    """Live requests left no room for it."""


class _StopAsked(NightfillError):
    """The worker is to stop."""


class _NoRoom(NightfillError):
    """Cut short too often."""


class VerifyRun:
    """Compares one fill on one engine, one request at a time. Used once."""

    def __init__(
        self,
        key: FillKey,
        *,
        book: ContextBook,
        answers: AnswerBook,
        engine: Engine,
        gate: Gatekeeper,
        scope: Scope = AUDIT,
        computed: Callable[[int, float], None] = lambda _tokens, _seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`computed` is told what the engine computes for it: tokens, and seconds of its own."""
        self._key = key
        self._book = book
        self._answers = answers
        self._engine = engine
        self._gate = gate
        self._scope = scope
        self._computed = computed
        self._clock = clock

    async def run(self) -> Verdict | Gone | Stopped | Crowded:
        """Do it, and put a fill that drifted into quarantine. Raises EngineError, KvError, StateUnavailable."""
        fill = await self._book.fill(self._key)
        if fill is None or fill.state is not FillState.READY:
            return Gone("it is not ready any more")
        description = await self._engine.describe()
        if description.signature != self._key.signature or description.reuse is Reuse.NONE:
            return Gone("the engine computes another model or version now, or does not use stored KV")
        prefix = Prefix(tokens=fill.tokens, salt=salt_of(self._key.tenant))
        try:
            async with self._engine.sampler(prefix) as sampler:
                questions = await self._ask(sampler, fill.tokens)
        except _StopAsked:
            return Stopped()
        except _NoRoom:
            return Crowded()
        verdict = judge(questions, prefix_tokens=len(fill.tokens))
        await self._act(fill, prefix, verdict)
        return verdict

    async def _ask(self, sampler: Sampler, tokens: tuple[int, ...]) -> list[Question]:
        """One way after the other, so that the engine's own computing is done once for all questions."""
        asked = tails(tokens, self._scope.questions)
        own = [await self._sample(sampler, tail, Way.OWN) for tail in asked]
        stored = [await self._sample(sampler, tail, Way.STORED) for tail in asked]
        questions = [Question(stored=ours, own=theirs) for ours, theirs in zip(stored, own, strict=True)]
        if not self._scope.noise and all(map(equal, questions)):
            return questions
        cold = [await self._sample(sampler, tail, Way.COLD) for tail in asked]
        again = [await self._sample(sampler, tail, Way.AGAIN) for tail in asked]
        return [Question(stored=s, own=o, cold=c, again=a) for s, o, c, a in zip(stored, own, cold, again, strict=True)]

    async def _sample(self, sampler: Sampler, tail: tuple[int, ...], way: Way) -> Sampled:
        for _ in range(MOST_CUTS):
            if not await self._gate.opens():
                raise _StopAsked
            work = sampler.sample(tail, way, max_tokens=self._scope.max_tokens)
            began_s = self._clock()
            sampled, frozen_s = await self._gate.run(self._engine, work)
            took_s = max(0.0, self._clock() - began_s - frozen_s)
            self._computed(sampled.computed if sampled is not None else 0, took_s)
            if sampled is not None:
                return sampled
        if self._gate.stopping:
            raise _StopAsked
        raise _NoRoom

    async def _act(self, fill: Fill, prefix: Prefix, verdict: Verdict) -> None:
        if verdict.outcome not in (Outcome.DRIFT, Outcome.MISSING):
            return
        if await self._book.fill(self._key) != fill:
            return  # somebody has replaced it meanwhile, and what was found is no longer there
        if verdict.outcome is Outcome.MISSING:
            reason = f"{verdict.loaded_tokens:,} of {len(fill.tokens):,} tokens could be loaded"
            await self._book.mark_fill(self._key, state=FillState.STALE, reason=reason)
            return
        _log.error("stored KV of a fill of %d tokens is wrong, and is dropped: %s", len(fill.tokens), verdict.why)
        await self._book.mark_fill(self._key, state=FillState.STALE, reason=f"{DRIFTED}: {verdict.why}")
        # What was said with it may be wrong too.
        for context in await self._book.contexts(self._key.tenant):
            if self._key.fingerprint in context.versions:
                await self._answers.drop(context.tenant, context=context.name)
        # Servers that load by themselves ask no book.
        async with self._engine.fill(prefix) as ours:
            await ours.discard()
