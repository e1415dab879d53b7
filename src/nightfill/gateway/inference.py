"""The routes that engines answer: from the request's bytes to the last byte of the reply, and the proof."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Final

from nightfill.contexts import FillState, Form
from nightfill.errors import (
    BadRequest,
    ClientLeft,
    EngineError,
    EngineUnavailable,
    NightfillError,
    NotStored,
    QueueFull,
    StateError,
    status_of,
)
from nightfill.gateway.ask import decode_ask
from nightfill.gateway.experiment import Arm
from nightfill.gateway.experiments import HEADER, Attempt
from nightfill.gateway.history import Turn
from nightfill.gateway.proof import Layer, Verdict, judge
from nightfill.gateway.relay import Limits, Relay, Trip
from nightfill.gateway.route import Reason
from nightfill.gateway.saving import Rates
from nightfill.gateway.session import SESSION_HEADERS, session_of
from nightfill.gateway.tried import context_head
from nightfill.state.access import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nightfill.answers.reply import Recording
    from nightfill.contexts import Signature, Tenant
    from nightfill.engines.engine import Description, Reuse, Weighed
    from nightfill.gateway.ask import Ask
    from nightfill.gateway.audit import Audits
    from nightfill.gateway.discovery import Discovery
    from nightfill.gateway.exchange import Exchange, Header
    from nightfill.gateway.experiments import Drawn, Experiments
    from nightfill.gateway.fleet import Fleet, Member
    from nightfill.gateway.history import History
    from nightfill.gateway.journal import Journal
    from nightfill.gateway.layers import Layers, Plan
    from nightfill.gateway.stored import StoredAnswers
    from nightfill.gateway.tried import Tried
    from nightfill.observe.metrics import Metrics
    from nightfill.state.book import ContextBook
    from nightfill.state.load import LoadBoard

_LOG: Final = logging.getLogger(__name__)
_FORWARDED: Final = (
    *(b"traceparent", b"tracestate", b"x-dynamo-parent-session-id", b"x-dynamo-session-final"),
    *SESSION_HEADERS,
)
_MARK_S: Final = 2.0


class Inference:
    """Answers requests for engines. Used by one event loop."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        layers: Layers,
        book: ContextBook,
        board: LoadBoard,
        journal: Journal,
        metrics: Metrics,
        limits: Limits,
        audits: Audits | None = None,
        machines: Mapping[str, str] | None = None,
        stored: StoredAnswers | None = None,
        rates: Rates | None = None,
        discovery: Discovery | None = None,
        history: History | None = None,
        experiments: Experiments | None = None,
    ) -> None:
        """`machines`: the kind of machine of each engine, by the engine's name. `rates` are told what engines took."""
        self._fleet = fleet
        self._layers = layers
        self._book = book
        self._board = board
        self._journal = journal
        self._metrics = metrics
        self._limits = limits
        self._audits = audits
        self._machines = machines or {}
        self._discovery = discovery
        self._history = history
        self._experiments = experiments
        self.stored = stored
        self._rates = rates or Rates()
        self._running: set[Relay] = set()

    async def descriptions(self) -> list[Description]:
        """What the engines say of themselves. Raises EngineUnavailable when none does."""
        return [member.description for member in await self._fleet.members()]

    async def ready(self) -> bool:
        """Whether an engine answers now. Never raises."""
        return await self._fleet.healthy()

    def abort(self, reason: NightfillError) -> None:
        """End all answers under way; their clients are told why."""
        for relay in tuple(self._running):
            relay.abort(reason)

    async def answer(self, exchange: Exchange, tenant: Tenant, path: str, body: bytes) -> None:
        """Serve one request for `path`. Raises NightfillError while no answer was begun."""
        arrived_s = time.time() - (time.monotonic() - exchange.started_s)
        ask = decode_ask(path, body, exchange.headers)
        session = session_of(tenant, exchange.headers, ask.members)
        members, drawn = await self._candidates(exchange, tenant, ask, session)
        if path == "/v1/embeddings":
            able = [member for member in members if member.description.embeddings]
            if not able:
                raise BadRequest(f"model {members[0].description.model!r} serves no embeddings", param="model")
            members = able
        headers = {
            name.decode(): exchange.headers[name].decode("latin-1") for name in _FORWARDED if name in exchange.headers
        }
        headers["x-request-id"] = exchange.request_id.decode()
        plans = await self._plans(tenant, ask, members, headers)
        choices = self._fleet.order(plans, session)
        tried = None
        if self.stored is not None:
            first = choices[0][0]
            tried = await self.stored.look(tenant, ask, plans[first], first.description)
            if tried is not None and await self.stored.serve(exchange, ask, plans[first], tried, arrived_s):
                return
        elif ask.wishes.only_stored:
            raise NotStored("no answers are stored here, and only-if-cached asks for no other")
        if (
            drawn is not None
            and drawn.arm is Arm.B
            and await self._try(exchange, tenant, drawn, ask, headers, arrived_s)
        ):
            return
        for place, (member, reason) in enumerate(choices):
            plan = dataclasses.replace(plans[member], route=reason)
            attempt = Attempt(last=place == len(choices) - 1, drawn=drawn)
            if await self._ask(exchange, tenant, member, plan, ask, tried, attempt, arrived_s=arrived_s):
                return

    async def _candidates(
        self, exchange: Exchange, tenant: Tenant, ask: Ask, session: bytes | None
    ) -> tuple[list[Member], Drawn | None]:
        """The engines that answer requests of no arm B, and the arm of the request."""
        if self._experiments is None:
            return await self._fleet.serving(ask.model), None
        await self._fleet.settled()  # or arm B's engine could seem to be all that there is
        members = await self._fleet.serving(ask.model)
        choice, who = exchange.headers.get(HEADER), session or exchange.request_id
        drawn = self._experiments.draw(tenant, ask, members, choice=choice, who=who)
        return self._experiments.usual(members), drawn

    async def _try(
        self, exchange: Exchange, tenant: Tenant, drawn: Drawn, ask: Ask, headers: Mapping[str, str], arrived_s: float
    ) -> bool:
        """Have arm B of an experiment answer. False, and nothing is sent, when it could not.

        Its answers are not stored: other requests would get them.
        """
        assert self._experiments is not None
        member = self._fleet.named(drawn.experiment.settings.b)
        if member is None and drawn.forced:
            raise EngineUnavailable("is not up", engine=drawn.experiment.settings.b)
        if member is None or (member.health.ejected and not drawn.forced):
            await self._experiments.absent(drawn, was_up=member is not None)
            return False
        ask = drawn.ask(ask)
        plan = dataclasses.replace((await self._plans(tenant, ask, [member], headers))[member], route=Reason.EXPERIMENT)
        attempt = Attempt(last=drawn.forced, drawn=drawn, arm=Arm.B)
        return await self._ask(exchange, tenant, member, plan, ask, None, attempt, arrived_s=arrived_s)

    async def _plans(
        self, tenant: Tenant, ask: Ask, members: Sequence[Member], headers: Mapping[str, str]
    ) -> dict[Member, Plan]:
        """A plan for each engine: one for all that are alike in what a plan depends on."""
        alike: dict[tuple[Signature, Reuse], Plan] = {}
        plans = {}
        for member in members:
            engine = member.description
            kind = engine.signature, engine.reuse
            if kind not in alike:
                alike[kind] = await self._layers.plan(tenant, ask, engine, headers)
            plans[member] = alike[kind]
        return plans

    async def _ask(
        self,
        exchange: Exchange,
        tenant: Tenant,
        member: Member,
        plan: Plan,
        ask: Ask,
        tried: Tried | None,
        attempt: Attempt,
        *,
        arrived_s: float,
    ) -> bool:
        """Have one engine answer. False when it could not, and another one is to be asked."""
        engine = member.description
        trip = Trip(engine=engine.engine)
        recording = self.stored.recording(tried, ask, engine) if self.stored is not None else None
        said = self._history.recording(plan.talk, streamed=ask.stream) if self._history is not None else None
        relay = Relay(
            exchange,
            attempt.limits(self._limits, streamed=plan.call.stream),
            lambda trip: [*_head(exchange, plan, trip, tried), *attempt.head],
            trip,
            tap=_tap(recording, said),
            spare=attempt.tries,
        )
        self._running.add(relay)
        passed_on = False
        try:
            self._metrics.routed(plan.route)
            with self._fleet.asking(member, plan):
                await relay.run(member.engine, plan.call)
            self._fleet.answered(member, plan, trip.tokens.output)
            if self._discovery is not None and trip.complete and trip.status == 200:
                self._discovery.note(tenant, plan)
            if self._history is not None and plan.talk is not None and said is not None and trip.complete:
                self._history.note(Turn(tenant=tenant, talk=plan.talk, filled=plan.talked, recording=said))
        except ClientLeft:
            self._metrics.client_left()
            raise
        except (EngineError, QueueFull) as exc:
            if isinstance(exc, EngineUnavailable) and not trip.first_s:
                self._fleet.failed(member, exc)
            passed_on = attempt.passes_on(exc, began=trip.first_s > 0, sent=exchange.head_sent)
            if not passed_on:
                raise
        finally:
            self._running.discard(relay)
            if self._experiments is not None:
                await self._experiments.note(attempt, trip, streamed=plan.call.stream, passed_on=passed_on)
            if not passed_on:
                row = await self._conclude(exchange, tenant, engine, plan, trip, arrived_s)
                if self.stored is not None and tried is not None:
                    self.stored.learn(tried, trip, recording, row)
                else:
                    self._journal.note(row)
        return not passed_on

    async def _conclude(
        self, exchange: Exchange, tenant: Tenant, engine: Description, plan: Plan, trip: Trip, arrived_s: float
    ) -> Access:
        """Judge and count a request that reached its engine; the row that the access log is to have of it."""
        verdict = _judge(plan, trip)
        now_s = time.monotonic()
        total_s = now_s - exchange.started_s
        ttft_s = (trip.content_s or trip.first_s or now_s) - exchange.started_s
        layer = verdict.layer.value
        metrics, tokens = self._metrics, trip.tokens
        metrics.overhead(trip.asked_s - exchange.started_s)
        if plan.call.stream and trip.content_s and trip.status == 200:
            metrics.ttft(engine.model, layer, ttft_s)
            self._board.note_ttft(ttft_s)
        if trip.complete:
            metrics.duration(engine.model, layer, total_s)
        metrics.tokens(prompt=tokens.prompt or 0, reused=tokens.reused or 0, output=tokens.output or 0)
        if tokens.drafted is not None:
            metrics.drafted(drafted=tokens.drafted, accepted=tokens.accepted or 0)
        saved_tokens, saved_s = _saved(plan, trip, verdict)
        metrics.saved(tokens=saved_tokens, seconds=saved_s)
        status = status_of(trip.error) if trip.error is not None else exchange.status
        if plan.fill is not None and trip.first_s:
            metrics.promise(
                planned=plan.planned_tokens,
                promised=trip.loaded_tokens,
                broken=verdict.broken,
                restore_s=trip.restore_s,
            )
            if trip.weighed is not None:
                metrics.restore_decision(loaded=trip.weighed.load)
        if trip.complete and trip.status == 200 and plan.call.stream and tokens.prompt is not None:
            # Of a reply that is not streamed nobody knows when its first token was there.
            self._rates.note(
                engine.model,
                computed=tokens.prompt - (tokens.reused or 0),
                prefill_s=trip.first_s - trip.asked_s - trip.queued_s - trip.restore_s,
                output=tokens.output or 0,
                decode_s=now_s - trip.first_s,
            )
        if verdict.broken:
            await self._mark_stale(plan, trip, verdict)
        elif self._audits is not None:
            await self._audits.consider(plan, verdict)
        return Access(
            at_s=arrived_s,
            tenant=tenant,
            context=plan.context,
            fingerprint=plan.fingerprint,
            form=Form.COMPLETION if plan.call.path == "/v1/completions" else Form.CHAT,
            model=engine.model,
            layer=layer,
            prompt_tokens=tokens.prompt or 0,
            # What nobody said anything about is neither kept nor broken.
            promised_tokens=trip.loaded_tokens if tokens.reused is not None else 0,
            reused_tokens=tokens.reused or 0,
            output_tokens=tokens.output or 0,
            ttft_s=ttft_s,
            total_s=total_s,
            restore_s=trip.restore_s,
            status=status or 500,
            broken=verdict.broken,
            user=plan.user,
            machine=self._machines.get(engine.engine, ""),
            saved_tokens=saved_tokens,
            saved_s=saved_s,
        )

    async def _mark_stale(self, plan: Plan, trip: Trip, verdict: Verdict) -> None:
        assert plan.fill is not None
        _LOG.warning("broken promise: %s", verdict.reason, extra={"context": plan.context, "engine": trip.engine})
        try:
            async with asyncio.timeout(_MARK_S):
                await self._book.mark_fill(plan.fill, state=FillState.STALE, reason=verdict.reason)
        except (StateError, TimeoutError) as exc:
            _LOG.warning("a broken promise could not be noted: %s", exc or "no answer in time")


def _tap(*recordings: Recording | None) -> Callable[[bytes], None] | None:
    """For a relay: hands each piece to all that record."""
    wanted = [recording for recording in recordings if recording is not None]
    if len(wanted) < 2:
        return wanted[0].add if wanted else None

    def add(piece: bytes) -> None:
        for recording in wanted:
            recording.add(piece)

    return add


def _judge(plan: Plan, trip: Trip) -> Verdict:
    """What the request proves. Only an engine that went to work on it and answered well proves anything."""
    answered = trip.first_s > 0 and 200 <= trip.status < 300
    # What was computed again by choice was not promised.
    chosen = trip.weighed is None or trip.weighed.load
    return judge(
        planned=plan.planned_tokens if answered else 0,
        promised=trip.loaded_tokens if answered and plan.fill is not None else 0,
        reused=trip.tokens.reused,
        claimed_ready=plan.claimed_ready and answered and chosen,
    )


def _saved(plan: Plan, trip: Trip, verdict: Verdict) -> tuple[int, float]:
    """Tokens that the engine says it did not compute thanks to a fill, and the engine seconds that this was worth."""
    if verdict.layer is not Layer.FILL:
        return 0, 0.0
    tokens = min(trip.tokens.reused or 0, plan.planned_tokens)
    return tokens, max(0.0, tokens * plan.token_s - trip.restore_s)


def _head(exchange: Exchange, plan: Plan, trip: Trip, tried: Tried | None) -> list[Header]:
    """Headers that say what served the request, as far as it is known when they leave."""
    verdict = _judge(plan, trip)
    overhead_ms = 1000 * (trip.asked_s - exchange.started_s)
    head = [
        (b"x-nightfill-layer", verdict.layer.value.encode()),
        (b"x-nightfill-engine", trip.engine.encode("latin-1", "replace")),
        (b"x-nightfill-route", plan.route.value.encode()),
        (b"x-nightfill-promised-tokens", b"%d" % (trip.loaded_tokens if plan.fill is not None else 0)),
        (b"x-nightfill-overhead-ms", b"%.3f" % overhead_ms),
        (
            b"server-timing",
            b"gateway;dur=%.3f, queue;dur=%.3f, restore;dur=%.3f"
            % (overhead_ms, 1000 * trip.queued_s, 1000 * trip.restore_s)
            + (tried.timing() if tried is not None else b""),
        ),
        *context_head(plan),
        *(tried.head() if tried is not None else ()),
    ]
    if plan.fill is not None and trip.weighed is not None:
        head.append((b"x-nightfill-restore", _shown(trip.weighed)))
    if trip.tokens.reused is not None:
        head.append((b"x-nightfill-reused-tokens", b"%d" % trip.tokens.reused))
    return head


def _shown(weighed: Weighed) -> bytes:
    """`restored; restore-ms=12.3; recompute-ms=340.0`; an estimate that is not known yet is left out."""
    parts = ["restored" if weighed.load else "recomputed"]
    for name, seconds in (("restore", weighed.restore_s), ("recompute", weighed.recompute_s)):
        if seconds is not None:
            parts.append(f"{name}-ms={1000 * seconds:.1f}")
    return "; ".join(parts).encode()


def model_of(description: Description) -> dict[str, object]:
    """One model as `GET /v1/models` shows it."""
    return {
        "id": description.model,
        "object": "model",
        "created": 0,
        "owned_by": "nightfill",
        "max_model_len": description.context_length,
    }
