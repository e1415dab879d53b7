"""The worker: plans, leases, fills, and ends when it is asked to, at any instant, without losing what is stored."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from nightfill.config import PriceSettings
from nightfill.contexts.context import FillKey, Signature
from nightfill.engines.engine import Reuse
from nightfill.errors import (
    EngineError,
    KvError,
    LeaseLost,
    NightfillError,
    QueueFull,
    SentToSleep,
    StateError,
    StateUnavailable,
)
from nightfill.kv.key import BLOCK_TOKENS, salt_of
from nightfill.ledger import day_of
from nightfill.sleep.autoscale import PACE
from nightfill.sleep.bill import Bill
from nightfill.sleep.checkpoint import STOP_SHARE
from nightfill.sleep.description import description_of, note_of
from nightfill.sleep.duty import Desk, Done
from nightfill.sleep.fidelity import Verdict
from nightfill.sleep.fill import Filled, FillRun, Gone, Stopped
from nightfill.sleep.gatekeeper import Gatekeeper
from nightfill.sleep.lease import HeldLease, while_held
from nightfill.sleep.planner import Planner
from nightfill.sleep.priority import policy_of
from nightfill.sleep.retention import Retention
from nightfill.sleep.retry import Failure, FailureKind, RetryPolicy, failure_of
from nightfill.sleep.settling import settle
from nightfill.sleep.slicing import SliceSizer
from nightfill.sleep.slumber import awake_of
from nightfill.sleep.sources import SourceWatch
from nightfill.sleep.stopping import pause, unless
from nightfill.sleep.survey import Survey
from nightfill.sleep.trigger import CHECK_S, Go, Reason, Trigger
from nightfill.sleep.verify import Crowded, VerifyRun
from nightfill.sleep.windows import Windows
from nightfill.state.jobs import ASKED, JobKind, WorkerId
from nightfill.state.load import NO_LOAD
from nightfill.state.process import is_gone, this_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from nightfill.config import SleepSettings
    from nightfill.contexts.context import Content, Context
    from nightfill.engines.engine import Description, Engine
    from nightfill.sleep.duty import Duty
    from nightfill.sleep.fill import Outcome
    from nightfill.sleep.planner import State
    from nightfill.sleep.pool import EnginePool
    from nightfill.sleep.trigger import Wait
    from nightfill.sleep.upkeep import Upkeep
    from nightfill.state.jobs import Lease
    from nightfill.state.load import LoadBoard

    Run = Callable[[HeldLease, asyncio.Event], Awaitable[Outcome | Done]]

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.2
"""How often the queue is asked for work, and the book for changes."""
NOTE_EVERY_S: Final = 60.0
"""How often it is told that an engine is still here; see `description.SEEN_S`."""
UPKEEP_EVERY_S: Final = 60.0
PRUNE_EVERY_S: Final = 3600.0
KEEP_JOBS_S: Final = 7 * 86400.0
KEEP_ACCESSES_S: Final = 30 * 86400.0
KEEP_LEDGER_DAYS: Final = 400
_PACE_WEIGHT: Final = 0.3
"""Of the newest fill, in an engine's smoothed pace."""
_ENGINES_END_WITHIN_S: Final = 15.0
_NO_ENGINE: Final = Gone("no engine here computes its model any more")


class Worker:
    """One process's background work. `run` once.

    `refresh` and `upkeep` run in threads. Engines in `unshared` serve nobody, so live requests do not stop work there;
    those in `sleepers` have models that may sleep (see `slumber`); `machines` has the kind of machine of each engine,
    for its price. `clock` gives Unix seconds, `steady` this host's monotonic ones.
    """

    def __init__(
        self,
        state: State,
        board: LoadBoard,
        pool: EnginePool,
        settings: SleepSettings,
        *,
        refresh: Callable[[Context], Content | None],
        upkeep: Upkeep | None = None,
        ttl_s: float = 7 * 86400.0,
        block_tokens: int = BLOCK_TOKENS,
        unshared: frozenset[str] = frozenset(),
        sleepers: frozenset[str] = frozenset(),
        machines: Mapping[str, str] | None = None,
        prices: PriceSettings | None = None,
        windows: Windows | None = None,
        duties: Sequence[Duty] = (),
        worker: WorkerId | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.id = worker or this_worker()
        self._state = state
        self._board = board
        self._pool = pool
        self._settings = settings
        self._upkeep = upkeep
        self._block_tokens = block_tokens
        self._unshared = unshared
        self._sleepers = sleepers
        self._machines = machines or {}
        self._failed_s: dict[str, float] = {}
        self._clock = clock
        self._steady = steady
        self._sleep = sleep
        self._trigger = Trigger(
            state.jobs, board, settings, windows or Windows(), on_change=_say, clock=clock, steady=steady
        )
        self._paces: dict[str, float] = {}
        """Tokens per second by engine, live requests and all included."""
        self._untold: set[str] = set()
        """Engines whose pace has changed since it was written down."""
        self._sources = SourceWatch(state.book, refresh, every_s=float(settings.check_sources_every_s), clock=steady)
        bill = Bill(state, prices=prices or PriceSettings(), stop_after_s=float(settings.stop_unpaid_after_s))
        policy = policy_of(settings, prices or PriceSettings())
        self._retention = Retention(state, upkeep, policy=policy, default_ttl_s=ttl_s, clock=clock)
        self._planner = Planner(
            state,
            clock=clock,
            default_ttl_s=ttl_s,
            policy=policy,
            bill=bill,
            survey=Survey(state) if settings.policy == "value" else None,
            on_look=self._retention.see,
        )
        self._descriptions: dict[str, Description] = {}
        self._noted_s: dict[str, float] = {}
        self._describe_after_s: dict[str, float] = {}
        self._describe_failures: dict[str, int] = {}
        self._sizer = SliceSizer(
            min_tokens=settings.min_slice_tokens,
            max_tokens=settings.max_slice_tokens,
            max_s=float(settings.max_slice_s),
        )
        self._sizers: dict[str, SliceSizer] = {}
        self._duties = duties
        self._runs: dict[JobKind, Run] = {
            JobKind.FILL: self._fill,
            JobKind.VERIFY: self._verify,
            **{duty.kind: partial(self._do, duty) for duty in duties},
        }
        self._retry = RetryPolicy(
            max_failures=settings.max_failures,
            base_s=float(settings.retry_base_s),
            cap_s=float(settings.retry_cap_s),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, or cancelled. Then the slice under way ends, what it computed is stored, the lease
        goes back and the engines end: what takes longer than `checkpoint.STOP_SHARE` of the grace is given up.
        """
        _log.info("worker %s begins", self.id)
        try:
            async with asyncio.TaskGroup() as tasks:
                planner = tasks.create_task(self._plan_until(stop), name="planner")
                jobs = tasks.create_task(self._work_until(stop), name="jobs")
                tasks.create_task(self._curb(stop, (planner, jobs)), name="curb")
        finally:
            async with asyncio.timeout(_ENGINES_END_WITHIN_S):
                await self._pool.aclose()
            _log.info("worker %s ends", self.id)

    async def _curb(self, stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Whatever they wait for when it is time to leave, they do not for long."""
        await stop.wait()
        await asyncio.wait(tasks, timeout=STOP_SHARE * self._settings.grace_s)
        for task in tasks:
            task.cancel()

    # --- planning ---

    async def _plan_until(self, stop: asyncio.Event) -> None:
        planned_at_s, tended_at_s, pruned_at_s = -1e18, -1e18, -1e18
        seen = -1
        while not stop.is_set():
            now_s = self._steady()
            try:
                changes = self._state.book.changes()
                if 0 <= changes != seen or now_s - planned_at_s >= self._settings.plan_every_s:
                    seen, planned_at_s = changes, now_s
                    await self._reclaim()
                    await self._plan(stop)
                if now_s - tended_at_s >= UPKEEP_EVERY_S and await self._retention.tend(self._restored()):
                    tended_at_s = now_s
                if self._upkeep is not None and self._upkeep.renew_due():
                    await self._renew(self._upkeep, stop)
                if now_s - pruned_at_s >= PRUNE_EVERY_S:
                    pruned_at_s = now_s
                    await self._state.jobs.prune(older_than_s=KEEP_JOBS_S)
                    await self._state.access.prune(older_than_s=KEEP_ACCESSES_S)
                    await self._state.ledger.prune(before_day=day_of(self._clock()) - KEEP_LEDGER_DAYS)
            except (StateError, KvError, QueueFull) as exc:
                # The next tick may go better, and live requests do not need us.
                _log.warning("planning: %s", exc)
            await pause(stop, LOOK_EVERY_S, self._sleep)

    async def _plan(self, stop: asyncio.Event) -> None:
        await self._sources.look(await self._state.book.watched())
        if not await self._state.book.is_empty():
            for name in self._pool.names:
                if name in self._sleepers:
                    await self._hear_of(name)
                elif name not in self._descriptions and not stop.is_set():
                    await self._describe(name, stop)
        if self._descriptions:
            known = tuple(self._descriptions.values())
            await self._planner.tick(known)
            for duty in self._duties:
                await duty.plan(known)
        for name, description in list(self._descriptions.items()):
            if name in self._untold or self._steady() - self._noted_s[name] >= NOTE_EVERY_S:
                self._untold.discard(name)
                await self._note(name, description)

    async def _describe(self, name: str, stop: asyncio.Event) -> None:
        """Start the engine to learn what it computes; keys of fills need its signature."""
        if self._steady() < self._describe_after_s.get(name, -1e18):
            return
        try:
            async with self._pool.lent(name) as engine:
                description = await unless(stop, engine.describe())
        except EngineError as exc:
            failures = self._describe_failures[name] = self._describe_failures.get(name, 0) + 1
            wait_s = min(self._retry.base_s * 2.0 ** min(failures - 1, 60), self._retry.cap_s)
            self._describe_after_s[name] = self._steady() + wait_s
            _log.warning("engine %s: asked again in %g s: %s", name, wait_s, exc)
            return
        if description is not None:
            await self._note(name, description)

    async def _hear_of(self, name: str) -> None:
        """What a model that may sleep computes is known from its gateway, and no reason to load it."""
        note = await self._state.engines.get(name)
        description = description_of(note.body) if note is not None else None
        if description is not None:
            self._descriptions[name] = description
            self._noted_s.setdefault(name, self._steady())

    async def _note(self, name: str, description: Description) -> None:
        self._descriptions[name], self._noted_s[name] = description, self._steady()
        await self._state.engines.put(name, {**note_of(description), PACE: round(self._paces.get(name, 0.0))})

    async def _reclaim(self) -> None:
        """Free what dead processes of this host still hold, so that nobody waits for their leases to expire."""
        for worker in await self._state.jobs.holders():
            if worker != self.id and is_gone(worker):
                freed = await self._state.jobs.reclaim(worker)
                _log.info("worker %s is gone: %d jobs are free again", worker, freed)

    def _restored(self) -> set[Signature]:
        """Fills of others are kept in an engine's slots, or nobody here knows where."""
        return {known.signature for known in self._descriptions.values() if known.reuse is not Reuse.NONE}

    async def _renew(self, upkeep: Upkeep, stop: asyncio.Event) -> None:
        """One step of a change of keys, while no live request is in the way."""
        gate = Gatekeeper(self._board, self._settings, stop=stop, clock=self._steady, sleep=self._sleep)
        if not await gate.opens(within_s=0.0):
            return
        salts = set(map(salt_of, await self._state.book.tenants()))
        await asyncio.to_thread(upkeep.renew, salts)

    # --- jobs ---

    async def _work_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            lease: Lease | None = None
            try:
                if self._descriptions:
                    lease = await self._lease()
            except StateUnavailable as exc:
                _log.warning("no job leased: %s", exc)
            if lease is not None:
                await self._run_in_time(lease, stop)
            else:
                await self._pool.stop_idle()
                await pause(stop, LOOK_EVERY_S, self._sleep)

    async def _lease(self) -> Lease | None:
        """The next job that may be done now."""
        decision = await self._trigger.now()
        # What somebody asked for, he waits for: at any hour.
        least = None if isinstance(decision, Go) else ASKED
        asleep: frozenset[str] = frozenset()
        if self._sleepers and not (isinstance(decision, Go) and decision.reason is Reason.WINDOW):
            asleep = self._sleepers - awake_of(await self._state.engines.notes(), now_s=self._clock())
        able = [known for name, known in self._descriptions.items() if name not in asleep]
        lease = await self._lease_for(able, min_priority=least)
        if lease is None and asleep:
            lease = await self._lease_for(list(self._descriptions.values()), min_priority=ASKED)
        return lease

    async def _lease_for(self, engines: Sequence[Description], *, min_priority: float | None) -> Lease | None:
        return await self._state.jobs.lease(
            self.id,
            kinds=tuple(self._runs),
            min_priority=min_priority,
            lease_s=float(self._settings.lease_s),
            needs=sorted({engine.signature for engine in engines}),
            max_tokens=max((engine.context_length for engine in engines), default=0),
        )

    async def _run_in_time(self, lease: Lease, stop: asyncio.Event) -> None:
        """Run the job; it is handed back when the time for it is over, as when the worker is to stop."""
        ends = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            job = tasks.create_task(self._run(lease, ends), name="job")
            watch = tasks.create_task(self._end_in_time(lease, stop, ends), name="trigger")
            job.add_done_callback(lambda _: watch.cancel())

    async def _end_in_time(self, lease: Lease, stop: asyncio.Event, ends: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                if lease.job.priority < ASKED and not isinstance(await self._trigger.now(), Go):
                    break
            except StateUnavailable as exc:
                _log.warning("job %d goes on, it is not known whether it still may: %s", lease.job.id, exc)
            await pause(stop, CHECK_S, self._sleep)
        ends.set()

    async def _run(self, lease: Lease, stop: asyncio.Event) -> None:
        held = HeldLease(
            self._state.jobs,
            lease,
            lease_s=float(self._settings.lease_s),
            clock=self._steady,
            sleep=self._sleep,
        )
        job = lease.job
        _log.info("job %d (%s): lease %d, priority %.2f", job.id, job.label, lease.fence, job.priority)
        try:
            outcome = await self._runs[job.kind](held, stop)
        except LeaseLost as exc:
            _log.warning("%s", exc)
            return
        except SentToSleep as exc:
            _log.info("job %d (%s): %s", job.id, job.label, exc)
            outcome = Stopped()
        except NightfillError as exc:
            outcome = failure_of(exc)
        except asyncio.CancelledError:
            await settle(self._state.jobs, held, Stopped(), self._retry)
            raise
        # An error that nobody foresaw ends the process, and its lease counts as lost: or it would go on for ever.
        await settle(self._state.jobs, held, outcome, self._retry)

    async def _fill(self, held: HeldLease, stop: asyncio.Event) -> Outcome:
        try:
            key = FillKey.parse(held.job.target)
        except ValueError:
            return Failure(FailureKind.IMPOSSIBLE, "not a fill's name")
        holding, began_s = await self._retention.holding(key), self._steady()
        async with self._lent(key.signature, held) as (name, engine):
            if engine is None:
                return _NO_ENGINE
            run = FillRun(
                key,
                held,
                book=self._state.book,
                engine=engine,
                gate=self._gate(name, stop),
                sizer=self._sizers.get(name, self._sizer),
                settings=self._settings,
                block_tokens=self._block_tokens,
                holding=holding,
                clock=self._steady,
                wall=self._clock,
            )
            try:
                outcome = await run.run()
                if isinstance(outcome, Filled) and held.work.tokens:
                    self._pace(name, held.work.tokens / max(self._steady() - began_s, 1e-3))
                if isinstance(outcome, Gone):
                    # Perhaps because it computes something else by now.
                    await self._note(name, await engine.describe())
                return outcome
            finally:
                # The next prefix begins short again, and so its slices.
                self._sizers[name] = replace(run.sizer, last_tokens=0)

    def _pace(self, name: str, tps: float) -> None:
        before = self._paces.get(name, tps)
        self._paces[name] = before + _PACE_WEIGHT * (tps - before)
        self._untold.add(name)

    async def _verify(self, held: HeldLease, stop: asyncio.Event) -> Outcome | Done:
        try:
            key = FillKey.parse(held.job.target)
        except ValueError:
            return Gone("not a fill's name")
        async with self._lent(key.signature, held) as (name, engine):
            if engine is None:
                return _NO_ENGINE
            run = VerifyRun(
                key,
                book=self._state.book,
                answers=self._state.answers,
                engine=engine,
                gate=self._gate(name, stop),
                computed=held.computed,
                clock=self._steady,
            )
            match await while_held(held, run.run()):
                case Verdict() as verdict:
                    return Done(outcome=verdict.outcome, note=verdict.why)
                case Crowded():
                    return Done(outcome="crowded", note="live requests left no room for it")
                case other:
                    return other

    async def _do(self, duty: Duty, held: HeldLease, stop: asyncio.Event) -> Outcome | Done:
        if not held.job.needs:
            return await while_held(held, duty.run(held, Desk(engine=None, gate=self._gate("", stop))))
        async with self._lent(Signature(held.job.needs), held) as (name, engine):
            if engine is None:
                return _NO_ENGINE
            return await while_held(held, duty.run(held, Desk(engine=engine, gate=self._gate(name, stop))))

    @asynccontextmanager
    async def _lent(self, signature: Signature, held: HeldLease) -> AsyncIterator[tuple[str, Engine | None]]:
        """An engine of that signature, and its name; None when none is here any more."""
        name = self._engine_for(signature)
        if name is None:
            yield "", None
            return
        held.begin_on(self._machines.get(name, ""))
        async with self._pool.lent(name) as engine:
            try:
                yield name, engine
            except EngineError:
                self._failed_s[name] = self._steady()
                raise

    def _gate(self, name: str, stop: asyncio.Event) -> Gatekeeper:
        board = NO_LOAD if name in self._unshared else self._board
        return Gatekeeper(board, self._settings, stop=stop, clock=self._steady, sleep=self._sleep)

    def _engine_for(self, signature: Signature) -> str | None:
        """The one that failed longest ago, or never."""
        able = [name for name, known in self._descriptions.items() if known.signature == signature]
        return min(able, key=lambda name: self._failed_s.get(name, float("-inf")), default=None)


def _say(decision: Go | Wait) -> None:
    _log.info("background work %s: %s", "goes on" if isinstance(decision, Go) else "waits", decision.why)
