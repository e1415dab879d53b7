"""The engines that serve: what each says of itself, how busy it is, and whether it is well."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import msgspec

from nightfill.errors import EngineError, EngineUnavailable
from nightfill.gateway.route import HOLDS, Candidate, Health, Reason, order, serving
from nightfill.observe.metrics import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from nightfill.contexts import FillKey, Signature
    from nightfill.engines.engine import Description, Engine
    from nightfill.gateway.layers import Plan

_LOG: Final = logging.getLogger(__name__)
CHECK_S: Final = 10.0
"""How often an engine that is well is asked how it is, and what: a server elsewhere may have been started again as
another one.
"""
BYTES_PER_TOKEN: Final = 4
"""Of a prompt's JSON, to tell loads from each other."""
_FIRST_OUTPUT_TOKENS: Final = 256.0
"""Taken for an answer's length before any has ended."""
_OUTPUT_WEIGHT: Final = 0.1
"""Of the newest answer in the smoothed length."""
_HELD: Final = 4096
_HELD_S: Final = 600.0
"""So long an engine that keeps its cache to itself is taken to have what it served."""
_ON_SERVERS: Final = 2
"""The distance of KV in tiers of an engine that does not say which."""


@dataclass(slots=True, eq=False)
class Member:
    """One engine of the fleet. Changed by the fleet alone."""

    engine: Engine
    said: Description | None = None
    """What it said of itself last."""
    in_flight: int = 0
    tokens: int = 0
    """That the requests in flight had to compute, by estimate."""
    output_tokens: float = _FIRST_OUTPUT_TOKENS
    """Of its answers, smoothed."""
    health: Health = field(default_factory=Health)
    failure: EngineError | None = None
    """Why it cannot be described, if so."""
    heard: bool = False
    """Asked once, with whatever result."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def description(self) -> Description:
        """What it said of itself last; only of members that `Fleet.members` gave."""
        assert self.said is not None
        return self.said


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How an engine is, for people."""

    healthy: bool
    failures: int
    in_flight: int
    in_flight_tokens: int


class Fleet:
    """Looks after its engines while inside its context. For one event loop; does not close the engines."""

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        describe_s: float = 30.0,
        check_s: float = CHECK_S,
        lead_tokens: int = 2048,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`describe_s` bounds the wait for an engine to say what it is; `lead_tokens` are as in `route.order`, or the
        prompt's own tokens where these are more.
        """
        self._members = tuple(Member(engine) for engine in engines)
        self._describe_s = describe_s
        self._check_s = check_s
        self._lead_tokens = lead_tokens
        self._clock = clock
        self._held: OrderedDict[tuple[FillKey, str], float] = OrderedDict()
        """When engines, by name, served a fill last."""
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._watch(member), name=f"watch engine {number}")
            for number, member in enumerate(self._members)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        for failure in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(failure, Exception):
                _LOG.error("watching an engine failed", exc_info=failure)

    async def members(self) -> list[Member]:
        """The engines that have said what they are. Waits for the first to do so.

        Raises EngineUnavailable, or what ails the last of them, when none does.
        """
        known = [member for member in self._members if member.said is not None]
        if known:
            return known
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._describe_s):
                while not known and not all(member.heard for member in self._members):
                    await self._news.wait()
                    known = [member for member in self._members if member.said is not None]
        if known:
            return known
        failures = [member.failure for member in self._members if member.failure is not None]
        if failures:
            raise failures[-1]
        if not self._members:
            raise EngineUnavailable("no engine is configured", engine="*")
        raise EngineUnavailable(f"not ready within {self._describe_s:g} s", engine="*")

    async def settled(self) -> None:
        """Wait until each engine was asked once what it is, and not for those that do not answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._describe_s):
                while not all(member.heard for member in self._members):
                    await self._news.wait()

    async def serving(self, model: str | None) -> list[Member]:
        """The engines that serve `model`, in no order. Raises as `members` and `route.serving`."""
        members = await self.members()
        return [members[index] for index in serving(model, [member.description.model for member in members])]

    def named(self, engine: str) -> Member | None:
        """The engine of that name, if it has said what it is."""
        return next((one for one in self._members if one.said is not None and one.said.engine == engine), None)

    def order(self, plans: Mapping[Member, Plan], session: bytes | None) -> list[tuple[Member, Reason]]:
        """The engines in the order in which to ask them, each with what speaks for it; `plans` are those of one request
        for each.
        """
        members = list(plans)
        candidates = [
            Candidate(
                name=member.description.engine,
                ejected=member.health.ejected,
                tokens=member.tokens,
                distance=self._distance(member, plans[member]),
            )
            for member in members
        ]
        prompt_tokens = max((_prompt_tokens(plan) for plan in plans.values()), default=0)
        lead_tokens = max(self._lead_tokens, prompt_tokens)
        turns = order(candidates, session=session, lead_tokens=lead_tokens)
        return [(members[turn.index], turn.reason) for turn in turns]

    def _distance(self, member: Member, plan: Plan) -> int | None:
        prefix = plan.call.prefix
        if prefix is None or not plan.call.reuse:
            return None
        near = member.engine.near(prefix)
        if near is not None:
            return near
        assert plan.fill is not None
        held_at_s = self._held.get((plan.fill, member.description.engine))
        return HOLDS if held_at_s is not None and self._clock() - held_at_s < _HELD_S else _ON_SERVERS

    def signatures(self) -> set[Signature]:
        """Of the engines that have said what they are."""
        return {member.said.signature for member in self._members if member.said is not None}

    def standings(self) -> dict[str, Standing]:
        """How the engines are, by name; of those that have said what they are."""
        return {
            member.said.engine: Standing(
                healthy=not member.health.ejected,
                failures=member.health.failures,
                in_flight=member.in_flight,
                in_flight_tokens=member.tokens,
            )
            for member in self._members
            if member.said is not None
        }

    def samples(self) -> list[Sample]:
        """The same as gauges, for each scrape; from any thread."""
        return [
            Sample(name=name, help=text, value=value, labels={"engine": engine})
            for engine, standing in self.standings().items()
            for name, text, value in (
                ("engine_healthy", "Whether an engine answered last; others come first if not.", standing.healthy),
                (
                    "engine_in_flight_tokens",
                    "Tokens that requests had to compute, estimated.",
                    standing.in_flight_tokens,
                ),
            )
        ]

    async def healthy(self) -> bool:
        """Whether an engine answers now. Never raises."""
        for member in self._members:
            if await member.engine.healthy():
                return True
        return False

    @contextlib.contextmanager
    def asking(self, member: Member, plan: Plan) -> Iterator[None]:
        """Count a request on an engine while inside."""
        missing = max(0, _prompt_tokens(plan) - plan.planned_tokens)
        tokens = missing + min(int(member.output_tokens), _most_output_tokens(plan))
        member.in_flight += 1
        member.tokens += tokens
        try:
            yield
        finally:
            member.in_flight -= 1
            member.tokens -= tokens

    def failed(self, member: Member, error: EngineError) -> None:
        """An engine could not be asked: until it answers, others come first."""
        self._ejected(member)
        member.wake.set()
        _LOG.warning("%s; others come first until it answers", error)

    def answered(self, member: Member, plan: Plan, output_tokens: int | None) -> None:
        """An engine answered, with so many tokens if it said."""
        member.health = member.health.after(answered=True)
        if output_tokens is not None:
            member.output_tokens += _OUTPUT_WEIGHT * (output_tokens - member.output_tokens)
        if plan.fill is not None:
            key = (plan.fill, member.description.engine)
            self._held[key] = self._clock()
            self._held.move_to_end(key)
            if len(self._held) > _HELD:
                self._held.popitem(last=False)

    def _ejected(self, member: Member) -> None:
        member.health = member.health.after(answered=False)
        if member.said is not None:
            # What comes back may have been started anew, with nothing in its cache.
            for key in [key for key in self._held if key[1] == member.said.engine]:
                del self._held[key]

    async def _watch(self, member: Member) -> None:
        while True:
            member.wake.clear()
            await self._probe(member)
            wait_s = member.health.probe_in_s(check_s=self._check_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await member.wake.wait()
                    # It failed just now; it may be about to come back.
                    await asyncio.sleep(min(wait_s, member.health.probe_in_s(check_s=self._check_s)))

    async def _probe(self, member: Member) -> None:
        name = member.said.engine if member.said is not None else "*"
        try:
            async with asyncio.timeout(self._describe_s):
                said = await member.engine.describe()
                if member.said is not None and member.said.signature != said.signature:
                    _LOG.info("engine %s computes another model or version now", said.engine)
                # Before its health is known, or a request for it would be taken for one of an unknown model.
                member.said = said
                well = await member.engine.healthy()
        except TimeoutError:
            self._ailing(member, EngineUnavailable(f"not ready within {self._describe_s:g} s", engine=name))
        except EngineError as exc:
            self._ailing(member, exc)
        else:
            if not well:
                self._ailing(member, EngineUnavailable("does not answer", engine=said.engine))
            else:
                if member.failure is not None or member.health.ejected:
                    _LOG.info("engine %s is there", said.engine)
                member.failure = None
                member.health = member.health.after(answered=True)
        member.heard = True
        self._news.set()
        self._news.clear()

    def _ailing(self, member: Member, error: EngineError) -> None:
        if str(error) != str(member.failure):
            _LOG.warning("%s", error)
        member.failure = error
        self._ejected(member)


def _prompt_tokens(plan: Plan) -> int:
    """Of the whole prompt, by its bytes."""
    raw = plan.call.body.get("messages") or plan.call.body.get("prompt") or b""
    return memoryview(raw).nbytes // BYTES_PER_TOKEN


def _most_output_tokens(plan: Plan) -> int:
    """That the client asked for; as many as there may be where it did not."""
    for name in ("max_completion_tokens", "max_tokens"):
        with contextlib.suppress(msgspec.DecodeError):
            tokens = msgspec.json.decode(plan.call.body.get(name, b"null"), type=int | None)
            if tokens is not None and tokens >= 0:
                return tokens
    return 1 << 20
