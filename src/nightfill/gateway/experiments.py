"""The experiments that run: draws the arm of each request, counts what came of it, and stops an arm that does harm."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.errors import (
    BadRequest,
    BadSetting,
    ClientLeft,
    Draining,
    EngineRefused,
    EngineUnavailable,
    NotAllowed,
    NotFound,
)
from nightfill.gateway.experiment import Arm, Drift, Tally, arm_of, measured, parse_choice, reason_to_stop
from nightfill.observe.metrics import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from nightfill.config import ExperimentSettings
    from nightfill.contexts import Tenant
    from nightfill.errors import NightfillError
    from nightfill.gateway.ask import Ask
    from nightfill.gateway.exchange import Header
    from nightfill.gateway.fleet import Member
    from nightfill.gateway.relay import Limits, Trip

_LOG: Final = logging.getLogger(__name__)
HEADER: Final = b"x-nightfill-experiment"


class Stop(msgspec.Struct, frozen=True):
    """Since when an experiment does not run, and why."""

    reason: str
    at_s: float
    """Unix seconds."""


@dataclass(slots=True, eq=False)
class Experiment:
    """One experiment and what it has found since the server started. Changed by `Experiments` alone."""

    settings: ExperimentSettings
    stop: Stop | None = None
    a: Tally = field(default_factory=Tally)
    b: Tally = field(default_factory=Tally)
    missed: int = 0
    """Requests of arm B that went to arm A, as arm B's engine was not up yet."""
    drift: Drift | None = None
    """As it was checked last."""


@dataclass(slots=True)
class Drawn:
    """The arm of one request."""

    experiment: Experiment
    arm: Arm
    forced: bool = False
    """Asked for by name: it is not counted, and no other arm answers for it."""
    refused: bool = False
    """Arm B took it for the client's fault; arm A is asked as well, and will show."""

    def ask(self, ask: Ask) -> Ask:
        """The request as its arm is to be asked."""
        mode = self.experiment.settings.mode
        return replace(ask, mode=mode) if mode and self.arm is Arm.B else ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One engine's turn to answer a request."""

    last: bool
    """Nobody else can be asked."""
    drawn: Drawn | None = None
    arm: Arm = Arm.A

    @property
    def tries(self) -> bool:
        """Whether it is for arm B, with arm A behind it."""
        return self.arm is Arm.B and not self.last

    @property
    def head(self) -> list[Header]:
        """What the answer says of it."""
        return [] if self.drawn is None else [(HEADER, f"{self.drawn.experiment.settings.name}={self.arm}".encode())]

    def limits(self, limits: Limits, *, streamed: bool) -> Limits:
        """Deadlines; arm B has less time to begin a stream. When it began an answer as a whole nobody can see."""
        if self.drawn is None or not self.tries or not streamed:
            return limits
        return replace(limits, first_byte_s=min(limits.first_byte_s, self.drawn.experiment.settings.patience_s))

    def passes_on(self, error: NightfillError, *, began: bool, sent: bool) -> bool:
        """Whether another engine is to be asked after `error`. `began`: the engine had begun its answer, and may have
        done work that must not be done twice; `sent`: the client has a part of it. Arm A makes good whatever arm B
        could not do before that.
        """
        if self.last:
            return False
        return not sent if self.tries else isinstance(error, EngineUnavailable) and not began


class Experiments:
    """All experiments of one gateway. For one event loop; `samples` from any thread."""

    def __init__(
        self,
        settings: Sequence[ExperimentSettings],
        *,
        path: Path | None = None,
        operators: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`path`: a file that remembers what was stopped, over restarts. `operators`: tenants that may choose an arm,
        stop and start. Raises BadSetting when the file cannot be read.
        """
        self._path = path
        self._operators = operators
        self._clock = clock
        self._wall = wall
        self._rng = random.Random(0)  # noqa: S311 - which values are kept
        self._writing = asyncio.Lock()
        stops = _read(path) if path is not None else {}
        self._all = {one.name: Experiment(one, stop=stops.get(one.name)) for one in settings}
        self._rivals = frozenset(one.b for one in settings if one.b != one.a)

    @property
    def all(self) -> list[Experiment]:
        """In the order of the settings."""
        return list(self._all.values())

    def get(self, name: str) -> Experiment:
        """Raises NotFound."""
        if name not in self._all:
            raise NotFound(f"there is no experiment {name[:80]!r}")
        return self._all[name]

    def operated_by(self, tenant: Tenant) -> None:
        """Raises NotAllowed unless `tenant` runs the server."""
        if tenant not in self._operators:
            raise NotAllowed("experiments concern all tenants: this takes the API key of tenant default")

    def usual(self, members: Sequence[Member]) -> list[Member]:
        """Those that answer requests of no arm B: an engine that is there for an arm B alone does not, if there is any
        other one of the model.
        """
        return [one for one in members if one.description.engine not in self._rivals] or list(members)

    def draw(
        self, tenant: Tenant, ask: Ask, members: Sequence[Member], *, choice: bytes | None, who: bytes
    ) -> Drawn | None:
        """The arm of a request that `members` could answer; None where no experiment runs on them. `choice`: the arm
        that the client asks for; `who`: its session, or the request itself. Raises BadRequest, NotAllowed, NotFound.
        """
        engines = {one.description.engine for one in members}
        if choice is not None:
            name, arm = parse_choice(choice)
            self.operated_by(tenant)
            chosen = self.get(name)
            if ask.form is None or chosen.settings.a not in engines:
                raise BadRequest(
                    f"experiment {name} is of chats and completions by the model of engine {chosen.settings.a}"
                )
            return Drawn(chosen, arm, forced=True)
        if ask.form is None:
            return None
        for one in self._all.values():
            settings = one.settings
            if one.stop is None and settings.a in engines:
                return Drawn(one, arm_of(settings.name, settings.share, who))
        return None

    async def note(self, attempt: Attempt, trip: Trip, *, streamed: bool, passed_on: bool) -> None:
        """Count what came of an attempt; it may stop the experiment. `passed_on`: another engine is asked next."""
        error, drawn, arm = trip.error, attempt.drawn, attempt.arm
        if drawn is None or drawn.forced or isinstance(error, ClientLeft | Draining):
            return
        if passed_on and arm is Arm.A:
            return  # there is another engine of arm A
        one = drawn.experiment
        if passed_on and isinstance(error, EngineRefused) and error.status < 500:
            drawn.refused = True
            return
        well = error is None and trip.complete and trip.status < 400
        if arm is not drawn.arm:
            if drawn.refused and well:
                one.b.failed()
        elif well:
            tokens = trip.tokens
            values = measured(trip, streamed=streamed, ended_s=self._clock())
            tally = one.a if arm is Arm.A else one.b
            tally.answered(values, self._rng, drafted=tokens.drafted or 0, accepted=tokens.accepted or 0)
        elif not 400 <= trip.status < 500:
            (one.a if arm is Arm.A else one.b).failed()
        await self._look(one)

    async def absent(self, drawn: Drawn, *, was_up: bool) -> None:
        """Arm B's engine is known not to answer, and is not even asked: a failure, unless it was never up."""
        if drawn.forced:
            return
        if was_up:
            drawn.experiment.b.failed()
            await self._look(drawn.experiment)
        else:
            drawn.experiment.missed += 1

    async def drifted(self, name: str, drift: Drift) -> Experiment:
        """Take note of a check of fidelity; it may stop the experiment. Raises NotFound."""
        one = self.get(name)
        one.drift = drift
        await self._look(one)
        return one

    async def stop(self, name: str, reason: str) -> Experiment:
        """All requests go to arm A from now on, also after a restart. Idempotent. Raises NotFound."""
        one = self.get(name)
        if one.stop is None:
            one.stop = Stop(reason, self._wall())
            _LOG.warning("experiment %s is stopped: %s", name, reason)
            await self._keep()
        return one

    async def start(self, name: str) -> Experiment:
        """Go on, or begin anew: what was counted is forgotten. Raises NotFound."""
        one = self.get(name)
        one.stop, one.drift, one.missed = None, None, 0
        one.a, one.b = Tally(), Tally()
        _LOG.info("experiment %s is started", name)
        await self._keep()
        return one

    def samples(self) -> list[Sample]:
        """Figures for each scrape."""
        found = []
        for name, one in self._all.items():
            text = "Whether an experiment runs."
            found.append(
                Sample(name="experiment_running", help=text, value=one.stop is None, labels={"experiment": name})
            )
            for arm, tally in ((Arm.A, one.a), (Arm.B, one.b)):
                labels = {"experiment": name, "arm": arm.value}
                found += [
                    Sample(name=metric, help=text, value=value, kind="counter", labels=labels)
                    for metric, text, value in (
                        ("experiment_requests", "Requests that ended, by arm.", tally.requests),
                        ("experiment_failures", "Requests that an arm failed.", tally.failures),
                    )
                ]
        return found

    async def _look(self, one: Experiment) -> None:
        if one.stop is None and (reason := reason_to_stop(one.settings, one.a, one.b, one.drift)):
            await self.stop(one.settings.name, reason)

    async def _keep(self) -> None:
        if self._path is None:
            return
        try:
            async with self._writing:
                stops = {name: one.stop for name, one in self._all.items() if one.stop is not None}
                await asyncio.to_thread(_write, self._path, stops)
        except OSError as exc:
            _LOG.error("it is not remembered which experiments are stopped: %s: %s", self._path, exc.strerror)


def _read(path: Path) -> dict[str, Stop]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Stop])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as exc:
        # An arm that was stopped must not be started by a damaged file.
        raise BadSetting(f"{path}: which experiments are stopped cannot be read: {exc}", param="experiments") from exc


def _write(path: Path, stops: dict[str, Stop]) -> None:
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        file.write(msgspec.json.encode(stops))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
