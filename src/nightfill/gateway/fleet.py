"""The engines that serve: what each says of itself, how busy it is, and whether it failed lately."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from nightfill.errors import EngineError, EngineUnavailable
from nightfill.gateway.route import Candidate, order, rest_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from nightfill.engines.engine import Description, Engine

_LOG: Final = logging.getLogger(__name__)
CHECK_S: Final = 10.0
"""How often an engine that is well is asked what it is: a server elsewhere may have been started again as another."""


@dataclass(slots=True, eq=False)
class Member:
    """One engine of the fleet. Changed by the fleet alone."""

    engine: Engine
    said: Description | None = None
    """What it said of itself last."""
    in_flight: int = 0
    failures: int = 0
    """In a row."""
    rests_until_s: float = 0.0
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


class Fleet:
    """Looks after its engines while inside its context. For one event loop; does not close the engines."""

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        describe_s: float = 30.0,
        check_s: float = CHECK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`describe_s` bounds the wait for an engine to say what it is."""
        self._members = tuple(Member(engine) for engine in engines)
        self._describe_s = describe_s
        self._check_s = check_s
        self._clock = clock
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

    async def choices(self, model: str | None) -> list[Member]:
        """The engines that serve `model`, in the order in which to ask them. Raises as `members` and `route.order`."""
        members = await self.members()
        now_s = self._clock()
        candidates = [
            Candidate(model=member.description.model, in_flight=member.in_flight, resting=now_s < member.rests_until_s)
            for member in members
        ]
        return [members[index] for index in order(model, candidates)]

    async def healthy(self) -> bool:
        """Whether an engine answers now. Never raises."""
        for member in self._members:
            if await member.engine.healthy():
                return True
        return False

    @contextlib.contextmanager
    def asking(self, member: Member) -> Iterator[None]:
        """Count a request on an engine while inside."""
        member.in_flight += 1
        try:
            yield
        finally:
            member.in_flight -= 1

    def failed(self, member: Member, error: EngineError) -> None:
        """An engine could not be asked: for a while, others come first."""
        member.failures += 1
        member.rests_until_s = self._clock() + rest_s(member.failures)
        member.wake.set()
        _LOG.warning("%s; others come first for %g s", error, rest_s(member.failures))

    def answered(self, member: Member) -> None:
        """An engine answered."""
        if member.failures:
            member.failures, member.rests_until_s = 0, 0.0

    async def _watch(self, member: Member) -> None:
        while True:
            member.wake.clear()
            await self._describe(member)
            wait_s = self._check_s if member.failure is None else min(rest_s(member.failures), self._check_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await member.wake.wait()
                    # It failed just now; it may be about to come back.
                    await asyncio.sleep(min(1.0, wait_s))

    async def _describe(self, member: Member) -> None:
        try:
            async with asyncio.timeout(self._describe_s):
                said = await member.engine.describe()
        except TimeoutError:
            name = member.said.engine if member.said is not None else "*"
            self._ailing(member, EngineUnavailable(f"not ready within {self._describe_s:g} s", engine=name))
        except EngineError as exc:
            self._ailing(member, exc)
        else:
            if member.failure is not None:
                _LOG.info("engine %s is there", said.engine)
            if member.said is not None and member.said.signature != said.signature:
                _LOG.info("engine %s computes another model or version now", said.engine)
            member.said, member.failure = said, None
            self.answered(member)
        member.heard = True
        self._news.set()
        self._news.clear()

    def _ailing(self, member: Member, error: EngineError) -> None:
        if str(error) != str(member.failure):
            _LOG.warning("%s", error)
        member.failure = error
        member.failures += 1
        member.rests_until_s = self._clock() + rest_s(member.failures)
