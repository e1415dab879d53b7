"""The layer of stored answers: what is tried before an engine is asked, and what is kept of its reply."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import msgspec

from nightfill.answers.cache import AnswerCache
from nightfill.answers.keeper import Deposit, Keeper
from nightfill.answers.look import Look, Result, report
from nightfill.answers.question import COMPLETION, Bar, Ground, Question
from nightfill.answers.reply import Kept, Recording, Unfit
from nightfill.answers.shadow import outcome, shadow_word
from nightfill.contexts import Form
from nightfill.errors import ClientLeft, NotStored, status_of
from nightfill.gateway import replay
from nightfill.gateway.proof import Layer
from nightfill.gateway.tried import Tried, context_head
from nightfill.state.access import Access
from nightfill.state.answers import Asked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nightfill.answers.cache import Neighbours
    from nightfill.answers.question import Questions
    from nightfill.config import AnswerSettings
    from nightfill.contexts import Tenant
    from nightfill.engines.engine import Description
    from nightfill.gateway.ask import Ask
    from nightfill.gateway.exchange import Exchange, Header
    from nightfill.gateway.layers import Plan
    from nightfill.gateway.relay import Trip
    from nightfill.gateway.saving import Rates
    from nightfill.observe.metrics import Metrics
    from nightfill.state.answers import AnswerBook, QuestionLog

_NOT_STORED: Final = "no stored answer serves this request, and only-if-cached asks for no other"
_SEND_S: Final = 60.0
"""For a client to take a stored reply."""


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Counted(msgspec.Struct, frozen=True):
    choices: list[msgspec.Raw]
    usage: _Usage = _Usage()


class StoredAnswers:
    """Looks answers up, gives them again, and keeps those that engines gave. Used by one event loop, as an asynchronous
    context manager that writes out what is left to be kept.
    """

    def __init__(
        self,
        *,
        cache: AnswerCache,
        keeper: Keeper,
        questions: Questions,
        settings: AnswerSettings,
        rates: Rates,
        metrics: Metrics,
        note: Callable[[Access], None],
    ) -> None:
        """`note` takes rows of the access log."""
        self._cache = cache
        self._keeper = keeper
        self._questions = questions
        self._settings = settings
        self._rates = rates
        self._metrics = metrics
        self.note = note

    async def __aenter__(self) -> Self:
        await self._keeper.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._keeper.__aexit__(*error)

    async def flush(self) -> None:
        """Wait until all that is to be kept by now is written."""
        await self._keeper.flush()

    def mode(self, tenant: Tenant, plan: Plan) -> str:
        """What is to be done with stored answers: the context's word comes before the tenant's."""
        return plan.options.answers or self._settings.tenants.get(tenant) or self._settings.mode

    async def look(self, tenant: Tenant, ask: Ask, plan: Plan, engine: Description) -> Tried | None:
        """Look for an answer; None where stored answers are off. Raises NotStored when only one would do."""
        mode = self.mode(tenant, plan)
        tried = None if mode == "off" else await self._tried(mode, tenant, ask, plan, engine)
        if ask.wishes.only_stored and (tried is None or tried.found is None):
            raise NotStored(_NOT_STORED)
        return tried

    async def _tried(self, mode: str, tenant: Tenant, ask: Ask, plan: Plan, engine: Description) -> Tried:
        began_s = time.perf_counter()
        ground = Ground(
            tenant=tenant,
            context=plan.context,
            fingerprint=plan.fingerprint,
            mode="distilled" if plan.distilled else "full",
            # Answers are shared with those whom KV is shared with, and may be kept apart further.
            salt=_salt(ask),
        )
        asked = self._questions.of(ground, path=ask.path, members=ask.members, engine=engine)
        tried = Tried(mode=mode, wishes=ask.wishes, ground=ground, engine=engine)
        if isinstance(asked, Bar):
            tried.bar = asked
            return tried
        tried.question = asked
        self._log(asked, ground, plan)
        if mode == "shadow" or not ask.wishes.serve:
            return tried
        found, look = await self._cache.exact(asked, max_age_s=ask.wishes.max_age_s, began_s=began_s)
        tried.looks.append(look)
        if found is None and mode == "near":
            found, look = await self._cache.near(asked, max_age_s=ask.wishes.max_age_s)
            tried.looks.append(look)
        for look in tried.looks:
            self._metrics.answer_looked(look.kind, look.result, look.seconds)
            if look.result is Result.GUARD:
                self._metrics.answer_refused(look.detail)
        tried.found = found
        return tried

    def _log(self, question: Question, ground: Ground, plan: Plan) -> None:
        foresees = self._settings.foresee if plan.options.foresee is None else plan.options.foresee
        if foresees and ground.context is not None and question.text is not None:
            self._keeper.asked(ground.tenant, ground.context, Asked(text=question.text, at_s=time.time()))

    async def serve(self, exchange: Exchange, ask: Ask, plan: Plan, tried: Tried, arrived_s: float) -> bool:
        """Give the answer that was found. False, and nothing is sent, when there is none, or none that can be read.

        Raises ClientLeft, and NotStored when only a stored answer would do.
        """
        found = tried.found
        if found is None:
            return False
        try:
            body = found.answer.body
            counted = msgspec.json.decode(body, type=_Counted).usage
            whole = replay.events(body, usage=ask.usage) if ask.stream else replay.whole(body)
        except (msgspec.DecodeError, KeyError, TypeError):
            # Not what we stored; as good as none.
            tried.found = None
            tried.looks[-1] = replace(tried.looks[-1], result=Result.FAILED)
            if ask.wishes.only_stored:
                raise NotStored(_NOT_STORED) from None
            return False
        overhead_ms = 1000 * (time.monotonic() - exchange.started_s)
        head = [
            (b"x-nightfill-layer", Layer.ANSWER.value.encode()),
            (b"x-nightfill-overhead-ms", b"%.3f" % overhead_ms),
            (b"server-timing", b"gateway;dur=%.3f" % overhead_ms + tried.timing()),
            *context_head(plan),
            *tried.head(),
        ]
        try:
            await _send(exchange, ask, whole, head)
        except ClientLeft as exc:
            exchange.status = status_of(exc)
            self._metrics.client_left()
            raise
        finally:
            self._keeper.served(found.answer.key)
            self._metrics.answer_served(found.answer.origin)
            self._account(exchange, ask, plan, tried, counted, arrived_s)
        return True

    def _account(
        self, exchange: Exchange, ask: Ask, plan: Plan, tried: Tried, counted: _Usage, arrived_s: float
    ) -> None:
        model = tried.engine.model
        total_s = time.monotonic() - exchange.started_s
        # Of the prompt, only what no fill had: that would not have been computed anyway.
        tokens = max(0, counted.prompt_tokens - (plan.planned_tokens if plan.claimed_ready else 0))
        seconds = self._rates.seconds(model, prompt=tokens, output=counted.completion_tokens)
        metrics = self._metrics
        metrics.overhead(total_s)
        if ask.stream:
            metrics.ttft(model, Layer.ANSWER.value, total_s)
        metrics.duration(model, Layer.ANSWER.value, total_s)
        metrics.answer_saved(prompt=tokens, output=counted.completion_tokens, seconds=seconds)
        self.note(
            Access(
                at_s=arrived_s,
                tenant=tried.ground.tenant,
                context=plan.context,
                fingerprint=plan.fingerprint,
                form=Form.COMPLETION if ask.path == COMPLETION else Form.CHAT,
                model=model,
                layer=Layer.ANSWER.value,
                prompt_tokens=counted.prompt_tokens,
                promised_tokens=0,
                reused_tokens=0,
                output_tokens=counted.completion_tokens,
                ttft_s=total_s,
                total_s=total_s,
                restore_s=0.0,
                status=exchange.status,
                user=plan.user,
                saved_tokens=tokens,
                saved_s=seconds,
                looked=report(tried.looks),
            )
        )

    def recording(self, tried: Tried | None, ask: Ask, engine: Description) -> Recording | None:
        """What is to be handed the pieces of `engine`'s reply; None when it is not to be kept."""
        if tried is None or tried.question is None or not tried.wishes.store:
            return None
        if (engine.signature, engine.version) != (tried.engine.signature, tried.engine.version):
            return None  # another engine had to be asked, and the question is not put to it
        return Recording(streamed=ask.stream, max_bytes=self._settings.max_answer_bytes)

    def learn(self, tried: Tried, trip: Trip, recording: Recording | None, row: Access) -> None:
        """Keep a reply, if it came to a good end, and have the request's row written."""
        row = replace(row, looked=report(tried.looks))
        if recording is None or tried.question is None or not trip.complete or trip.status != 200:
            self.note(row)
            return
        ttl_s = float(self._settings.ttl_s)
        shadow = _Shadow(self, tried, row) if tried.mode == "shadow" and tried.wishes.serve else None
        kept = self._keeper.keep(
            Deposit(
                ground=tried.ground,
                question=tried.question,
                model=tried.engine.model,
                recording=recording,
                tokens=trip.tokens,
                ttl_s=ttl_s if tried.wishes.ttl_s is None else min(ttl_s, tried.wishes.ttl_s),
                judge=shadow.judge if shadow is not None else None,
            )
        )
        if shadow is None or not kept:
            self.note(row)

    async def shadowed(self, tried: Tried, kept: Kept | Unfit) -> tuple[list[Look], str]:
        """What would have served, and how it compares with what did: the look-ups, and a word of `answers.shadow`."""
        assert tried.question is not None
        max_age_s = tried.wishes.max_age_s
        found, look = await self._cache.exact(tried.question, max_age_s=max_age_s, began_s=time.perf_counter())
        looks = [look]
        if found is None:
            found, look = await self._cache.near(tried.question, max_age_s=max_age_s)
            looks.append(look)
        if found is None:
            return looks, shadow_word(None, None)
        alike = await self._cache.alike(found.answer.body, kept.body) if isinstance(kept, Kept) else None
        self._metrics.answer_shadowed(found.kind, outcome(alike))
        return looks, shadow_word(found.kind, alike)


class _Shadow:
    """One request that the model served: what the cache would have said is looked up afterwards."""

    def __init__(self, layer: StoredAnswers, tried: Tried, row: Access) -> None:
        self._layer, self._tried, self._row = layer, tried, row

    async def judge(self, kept: Kept | Unfit) -> bool:
        """Have the row written. Where something would have served, there would have been no reply to be stored."""
        looks: list[Look] = []
        word = shadow_word(None, None)
        try:
            looks, word = await self._layer.shadowed(self._tried, kept)
        finally:
            self._layer.note(replace(self._row, looked=f"{report(looks)} {word}".strip()))
        return word == shadow_word(None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRoom:
    """What this layer is made of."""

    settings: AnswerSettings
    answers: AnswerBook
    questions: QuestionLog
    keys: Questions
    neighbours: Neighbours | None = None
    """Finds near answers, where that is installed."""

    def layer(self, *, rates: Rates, metrics: Metrics, note: Callable[[Access], None]) -> StoredAnswers:
        """The layer, to be used inside its context."""
        return StoredAnswers(
            cache=AnswerCache(self.answers, neighbours=self.neighbours),
            keeper=Keeper(
                self.answers,
                self.questions,
                max_answer_bytes=self.settings.max_answer_bytes,
                on_outcome=metrics.answer_kept,
            ),
            questions=self.keys,
            settings=self.settings,
            rates=rates,
            metrics=metrics,
            note=note,
        )


async def _send(exchange: Exchange, ask: Ask, whole: bytes, head: Iterable[Header]) -> None:
    """Raises ClientLeft, also when the client does not take it in time."""
    try:
        async with asyncio.timeout(_SEND_S):
            if ask.stream:
                kind = (b"content-type", b"text/event-stream; charset=utf-8")
                await exchange.start(200, [kind, (b"cache-control", b"no-cache"), *head])
                await exchange.send_last(whole)
            else:
                await exchange.respond(200, whole, headers=head)
    except TimeoutError as exc:
        raise ClientLeft(f"the client did not take its answer within {_SEND_S:g} s") from exc


def _salt(ask: Ask) -> str:
    if ask.cache_salt is None and not ask.wishes.namespace:
        return ""
    return msgspec.json.encode([ask.cache_salt, ask.wishes.namespace]).decode()
