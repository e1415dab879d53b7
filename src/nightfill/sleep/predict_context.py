"""What is foreseen for one context, from what the state holds of it and of its tenant's other contexts."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from nightfill.answers.reply import words_of
from nightfill.contexts import ContextName, FillKey, FillState, Form, Messages
from nightfill.sleep.fill import Gone
from nightfill.sleep.predict import quotas
from nightfill.sleep.predict_model import prompt
from nightfill.sleep.predict_sources import chosen, gathered
from nightfill.sleep.predict_vectors import Embeddings
from nightfill.state.answers import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.answers.embed import Embedder
    from nightfill.answers.question import Question
    from nightfill.answers.reply import Kept
    from nightfill.config import AnswerSettings, ForeseeSettings
    from nightfill.contexts import Content, Context, Fill, Tenant
    from nightfill.engines.engine import Description
    from nightfill.sleep.answer_request import Requests
    from nightfill.sleep.gatekeeper import Gatekeeper
    from nightfill.sleep.predict import Candidate
    from nightfill.state.agenda import Agenda
    from nightfill.state.answers import AnswerBook, Asked, Origin, QuestionLog
    from nightfill.state.book import SourceBook
    from nightfill.state.jobs import Job, JobQueue

MOST_CONTEXTS: Final = 200
"""Of the tenant's other contexts, whose logs are read for what recurs."""
ASKED_OF_EACH: Final = 100
LIST_EVERY_S: Final = 600.0
"""How often the newest of them are looked for: a tenant may have a million contexts."""
_MOST_TENANTS: Final = 256
LIST_TOKENS: Final = 40
"""Of each question that a model writes."""


class Books(Protocol):
    """The books that foreseeing needs."""

    @property
    def jobs(self) -> JobQueue:
        """What is to be done."""

    @property
    def book(self) -> SourceBook:
        """What is long-lived, and what of it is filled."""

    @property
    def agenda(self) -> Agenda:
        """All contexts, in steps."""

    @property
    def answers(self) -> AnswerBook:
        """What is prepared."""

    @property
    def questions(self) -> QuestionLog:
        """What was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a job of foreseeing works on: a context's version as one engine has filled it."""

    key: FillKey
    context: ContextName

    def __str__(self) -> str:
        return f"{self.key}/{self.context}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """The inverse of `str`. Raises ValueError."""
        key, _, name = text.rpartition("/")
        return cls(key=FillKey.parse(key), context=ContextName(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """A question that is likely to come, as a client would ask it."""

    candidate: Candidate
    question: Question
    prepared: bool
    """An answer is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a job of foreseeing rests on, still as it was when the job was queued."""

    target: Target
    context: Context
    content: Content
    fill: Fill


class Foresight:
    """Foresees. For one event loop; what takes long runs in a thread.

    `load` gives the embedding by which questions are found alike, once it is needed; without it (BadSetting, or None)
    those in the same words are.
    """

    def __init__(
        self,
        state: Books,
        requests: Requests,
        *,
        answers: AnswerSettings,
        settings: ForeseeSettings,
        load: Callable[[], Embedder] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state = state
        self.requests = requests
        self.answers = answers
        self.settings = settings
        self._embeddings = Embeddings(load)
        self._newest: dict[Tenant, tuple[float, list[ContextName]]] = {}
        """When, and which, by tenant."""
        self._clock = clock
        self.list_prompt = prompt(settings.model_questions)
        self.list_tokens = LIST_TOKENS * settings.model_questions

    def wanted(self, context: Context) -> bool:
        """Whether its options, or the settings, say so, and what is prepared may serve at all."""
        foresee = self.answers.foresee if context.options.foresee is None else context.options.foresee
        asked = foresee and self._mode(context) != "off"
        # What comes next in a chat is nobody else's question.
        return asked and Form.CHAT in context.forms and context.chat is None

    def _mode(self, context: Context) -> str:
        return context.options.answers or self.answers.tenants.get(context.tenant) or self.answers.mode

    async def limits(self, context: Context) -> dict[Origin, int]:
        """Answers to keep prepared for it, by source."""
        counts = await self.state.answers.counts(context.tenant, context.name)
        return quotas(counts, self.settings.per_context)

    async def ready(self, target: Target) -> Fill | None:
        """The fill that answers are made with; None while it is not ready."""
        fill = await self.state.book.fill(target.key)
        return fill if fill is not None and fill.state is FillState.READY and fill.stored_tokens else None

    async def standing(self, job: Job) -> Standing | Gone:
        """What the job is about, or why it is about nothing any more. Raises StateUnavailable."""
        try:
            target = Target.parse(job.target)
        except ValueError:
            return Gone("not a filled context's name")
        context = await self.state.book.get(target.key.tenant, target.context)
        if context is None or context.current != target.key.fingerprint or not self.wanted(context):
            return Gone("its version was replaced, or nobody wants its questions foreseen any more")
        content, fill = await self.state.book.content(context.tenant, context.current), await self.ready(target)
        if content is None or fill is None:
            return Gone("it is not filled any more")
        return Standing(target=target, context=context, content=content, fill=fill)

    def list_question(self, context: Context, engine: Description) -> Question | None:
        """The request for a list of questions: its reply is stored like an answer, and goes as one does."""
        if "model" not in self.settings.sources:
            return None
        return self.requests.question(context, self.list_prompt, engine, max_tokens=self.list_tokens)

    def answer(
        self, context: Context, question: Question, kept: Kept, engine: Description, *, origin: Origin
    ) -> Answer:
        """A reply that was prepared, ready to be stored."""
        return Answer(
            key=question.key,
            scope=question.scope,
            tenant=context.tenant,
            context=context.name,
            fingerprint=context.current,
            model=engine.model,
            question=(question.text or "") if kept.to_its_end else "",
            body=kept.body,
            origin=origin,
            at_s=0,
            ttl_s=float(self.answers.ttl_s),
        )

    async def foreseen(
        self, context: Context, content: Content, engine: Description, *, gate: Gatekeeper | None = None
    ) -> list[Foreseen] | None:
        """The questions that answers are to be prepared for, likeliest first; None when the worker is to stop.

        They are found anew each time, and lie nowhere but where they came from. Raises StateUnavailable.
        """
        state, sources, most = self.state, self.settings.sources, self.settings.per_context
        asked: Sequence[Asked] = ()
        others: list[Sequence[Asked]] = []
        if "log" in sources:
            limit = self.answers.questions_per_context
            asked = await state.questions.recent(context.tenant, context.name, limit=limit)
            others = await self._others(context)
        listed = self.list_question(context, engine)
        reply = await state.answers.get(listed.key) if listed is not None else None
        written = "\n".join(words_of(reply.body)) if reply is not None else ""
        limits = await self.limits(context)
        # Where only equal requests are served, each way to ask is worth an answer of its own.
        near = self._mode(context) != "exact" and await self._embeddings.there()
        if gate is not None and not await gate.opens():
            return None
        vectors = await self._embeddings.of([one.text for one in asked], gate) if near else None
        if near and vectors is None:
            return None
        wide = await asyncio.to_thread(
            gathered,
            _text(content),
            asked=asked,
            others=others,
            written=written,
            structure="structure" in sources,
            limits=limits,
            most=most,
            vectors=vectors,
            now_s=self._clock(),
        )
        vectors = await self._embeddings.of([one.text for one in wide], gate) if near else None
        if near and vectors is None:
            return None
        found = []
        for candidate in await asyncio.to_thread(chosen, wide, limits=limits, most=most, vectors=vectors):
            question = self.requests.question(context, candidate.text, engine)
            if question is not None:
                prepared = await state.answers.get(question.key) is not None
                found.append(Foreseen(candidate=candidate, question=question, prepared=prepared))
        return found

    async def _others(self, context: Context) -> list[Sequence[Asked]]:
        at_s, names = self._newest.get(context.tenant, (float("-inf"), []))
        if self._clock() - at_s >= LIST_EVERY_S:
            contexts = [one for one in await self.state.book.contexts(context.tenant) if self.wanted(one)]
            newest = sorted(contexts, key=lambda one: -one.updated_at_s)[: MOST_CONTEXTS + 1]
            names = [one.name for one in newest]
            self._newest[context.tenant] = self._clock(), names
            while len(self._newest) > _MOST_TENANTS:
                del self._newest[next(iter(self._newest))]
        return [
            await self.state.questions.recent(context.tenant, name, limit=ASKED_OF_EACH)
            for name in names
            if name != context.name
        ]


def _text(content: Content) -> str:
    if isinstance(content, Messages):
        return "\n\n".join(message.content for message in content.messages)
    return content.text
