"""One fill job, from lease to proof."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nightfill.contexts.chats import whole_content
from nightfill.contexts.context import Fill, FillKey, FillState
from nightfill.engines.engine import BOUNDARY_TOKENS, Prefix, Reuse
from nightfill.errors import KvError, NightfillError
from nightfill.kv.key import BLOCK_TOKENS, salt_of
from nightfill.sleep.checkpoint import LONG_CLOSED_S, STOP_SHARE, save_due
from nightfill.sleep.plan import too_long
from nightfill.sleep.retry import Failure, FailureKind
from nightfill.sleep.stopping import first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from nightfill.config import SleepSettings
    from nightfill.engines.engine import Engine, PrefixFill, Slice
    from nightfill.sleep.gatekeeper import Gatekeeper
    from nightfill.sleep.lease import HeldLease
    from nightfill.sleep.slicing import SliceSizer
    from nightfill.state.book import ContextBook

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """Ready and proven. `seconds` is engine time, of the resumed part too."""

    tokens: int
    computed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """The worker was asked to end; what was computed is stored as far as time allowed."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Nobody needs it any more."""

    reason: str


Outcome = Filled | Stopped | Gone | Failure


class _Replaced(NightfillError):
    """The version was replaced or deleted while its fill was under way."""


class _StopAsked(NightfillError):
    """The worker is to stop."""


class FillRun:
    """Runs one fill job on one engine. Used once. Stores while inside `holding` of the fill, stored tokens unknown."""

    def __init__(
        self,
        key: FillKey,
        held: HeldLease,
        *,
        book: ContextBook,
        engine: Engine,
        gate: Gatekeeper,
        sizer: SliceSizer,
        settings: SleepSettings,
        block_tokens: int = BLOCK_TOKENS,
        holding: Callable[[Fill], AbstractAsyncContextManager[None]] = lambda _: nullcontext(),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._held = held
        self._book = book
        self._engine = engine
        self._gate = gate
        self._settings = settings
        self._block_tokens = block_tokens
        self._holding = holding
        self._clock = clock
        self._wall = wall
        self._tokens: tuple[int, ...] = ()
        self._reached = 0
        self._stored = 0
        self._computed = 0
        self._engine_s = 0.0
        self._unsaved_s = 0.0
        self._last_save_s = 0.0
        self.sizer = sizer
        """What the slices taught about the engine's speed."""

    async def run(self) -> Outcome:
        """Do it, the lease being renewed meanwhile. Raises LeaseLost, EngineError, KvError, StateUnavailable.

        Whatever ends it, what is stored stays, and the engine is left thawed and without the prefix.
        """
        failure: BaseException | None = None
        work: asyncio.Task[Outcome] | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                work = tasks.create_task(self._work(), name="fill")
                beat = tasks.create_task(self._held.beat(), name="lease")
                work.add_done_callback(lambda _: beat.cancel())
        except* NightfillError as group:
            failure = first_of(group)
        if isinstance(failure, _Replaced):
            return Gone("its version was replaced")
        if isinstance(failure, _StopAsked):
            return Stopped()
        if failure is not None:
            raise failure
        assert work is not None
        return work.result()

    async def _work(self) -> Outcome:
        content = await whole_content(self._book, self._key.tenant, self._key.fingerprint)
        if content is None:
            return Gone("its version is gone")
        before = await self._book.fill(self._key)
        if before is not None and before.state is FillState.READY and before.stored_tokens >= len(before.tokens):
            if self._held.job.lost:
                # Its worker fell silent between the last step and saying that it was the last.
                return Filled(tokens=before.total_tokens, computed=0, seconds=0.0)
            # Who queued it had looked before another worker was done with it.
            return Gone("it is ready already")
        description = await self._unless_stopping(self._engine.describe())
        if description.signature != self._key.signature:
            return Gone("the engine computes another model or version now")
        if description.reuse is Reuse.NONE:
            return Failure(FailureKind.IMPOSSIBLE, "the engine does not use restored KV of this model")
        self._tokens = await self._unless_stopping(self._engine.prefix_tokens(content, self._key.form))
        total = self._held.total_tokens = len(self._tokens)
        if total == 0:
            return Failure(FailureKind.IMPOSSIBLE, "requests with this context share no token at their front")
        if total >= description.context_length:
            return Failure(FailureKind.IMPOSSIBLE, too_long(total, description.context_length))
        await self._enter()
        prefix = Prefix(tokens=self._tokens, salt=salt_of(self._key.tenant))
        async with self._holding(self._so_far(FillState.FILLING)), self._engine.fill(prefix) as fill:
            return await self._fill(fill)

    async def _fill(self, fill: PrefixFill) -> Outcome:
        before = await self._book.fill(self._key)
        if before is not None and before.drifted:
            # To go on from wrong KV would make more of it.
            await fill.discard()
        self._reached = self._stored = await self._unless_stopping(fill.resume())
        if before is not None and before.stored_tokens and self._stored:
            self._engine_s = before.fill_seconds * min(1.0, self._stored / before.stored_tokens)
        await self._note(FillState.FILLING)
        total = len(self._tokens)
        while self._reached < total:
            if not await self._gate.opens(within_s=LONG_CLOSED_S):
                if self._unsaved_s > 0:
                    await self._keep(fill)
                await self._enter()
            await self._slice(fill)
            every_s = float(self._settings.max_slice_s)
            due = save_due(computed_s=self._unsaved_s, last_save_s=self._last_save_s, every_s=every_s)
            if due and self._reached < total:
                await self._keep(fill)
        if self._stored < total:
            await self._keep(fill)
        if self._stored < total:
            raise KvError(f"the store holds only {self._stored:,} of {total:,} tokens")
        await self._enter()
        return await self._prove(fill)

    async def _enter(self) -> None:
        if not await self._gate.opens():
            raise _StopAsked

    async def _unless_stopping(self, work: Coroutine[Any, Any, T]) -> T:
        result = await self._gate.unless_stopping(work)
        if result is None:
            raise _StopAsked
        return result

    async def _slice(self, fill: PrefixFill) -> None:
        """Compute one slice, or what the gate allows of it."""
        freezes = self._gate.freezes(self._engine)
        wanted = self.sizer.next_tokens(freezes=freezes, live_ttft_s=self._gate.live_ttft_s)
        upto = min(len(self._tokens), self._reached + wanted)
        if upto < len(self._tokens):
            # Whole blocks where a slice has room for one: a half block would be stored twice.
            upto = max(upto - upto % self._block_tokens, min(self._reached + self._settings.min_slice_tokens, upto))
        began_s = self._clock()
        done, frozen_s = await self._gate.run(self._engine, _extend(fill, upto))
        took_s = max(0.0, self._clock() - began_s - frozen_s)
        if done is None:
            # Cut short: the engine has some of it, and the next slice will tell how much.
            self._unsaved_s += took_s
            self._engine_s += took_s
            self._held.computed(0, took_s)
            return
        # An engine that was stopped may count the pause as its own time.
        seconds = min(done.seconds, took_s) if frozen_s > 0 else done.seconds
        self.sizer = self.sizer.after(tokens=done.computed, seconds=seconds)
        self._unsaved_s += seconds
        self._engine_s += seconds
        # What slices before it did that were cut short is no longer to be computed.
        computed = max(done.computed, done.reached - self._reached)
        self._computed += computed
        self._held.computed(computed, seconds)
        self._reached = self._held.done_tokens = done.reached

    async def _keep(self, fill: PrefixFill) -> None:
        """Store what is computed and say so. Raises KvError when it cannot be stored.

        A worker that is to stop waits for it `STOP_SHARE` of its grace at most.
        """
        began_s = self._clock()
        try:
            async with asyncio.timeout(STOP_SHARE * self._settings.grace_s if self._gate.stopping else None):
                self._stored = await fill.keep()
        except TimeoutError:
            _log.warning("job %d: stopped before the last slice was stored", self._held.job.id)
            return
        self._last_save_s = self._clock() - began_s
        self._unsaved_s = 0.0
        # More than we know of: the engine kept what a slice did that was cut short.
        more = max(0, self._stored - self._reached)
        self._computed += more
        self._held.computed(more, 0.0)
        self._reached += more
        self._held.kept_tokens = self._stored
        self._held.done_tokens = self._reached
        await self._held.renew()
        _log.debug("job %d: %d of %d tokens stored", self._held.job.id, self._stored, len(self._tokens))
        await self._note(FillState.FILLING)

    async def _prove(self, fill: PrefixFill) -> Outcome:
        total, began_s = len(self._tokens), self._clock()
        proven = await self._unless_stopping(fill.prove())
        # One token more than the prefix was asked for, and an engine computes that one in any case.
        self._held.computed(max(0, total - proven) + 1, self._clock() - began_s)
        if proven >= total - min(BOUNDARY_TOKENS, total // 2):
            await self._note(FillState.READY)
            return Filled(tokens=total, computed=self._computed, seconds=self._engine_s)
        reason = f"restore not used: the engine reused {proven:,} of {total:,} tokens"
        await self._book.mark_fill(self._key, state=FillState.STALE, reason=reason)
        return Failure(FailureKind.UNPROVEN, reason)

    async def _note(self, state: FillState) -> None:
        """Write the fill into the book."""
        if not await self._book.put_fill(self._so_far(state)):
            raise _Replaced

    def _so_far(self, state: FillState) -> Fill:
        return Fill(
            key=self._key,
            state=state,
            tokens=self._tokens,
            stored_tokens=self._stored,
            filled_at_s=self._wall(),
            fill_seconds=self._engine_s,
        )


async def _extend(fill: PrefixFill, upto: int) -> Slice:
    return await fill.extend(upto)
