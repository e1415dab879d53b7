"""Keeps contexts warm by replay, on an engine that does not use restored KV: it computes them in its own slots.

It runs beside the gateway, on the engine that serves. A live request ends it within one batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from nightfill.contexts.chats import whole_content
from nightfill.contexts.context import Fill, FillKey, FillState
from nightfill.engines.engine import BOUNDARY_TOKENS, Engine, Prefix, Reuse
from nightfill.errors import EngineError, NightfillError, QueueFull, StateError
from nightfill.kv.key import salt_of
from nightfill.sleep.gatekeeper import Gatekeeper
from nightfill.sleep.plan import too_long
from nightfill.sleep.priority import DEFAULT_TTL_S, case_of, value
from nightfill.sleep.slicing import SliceSizer
from nightfill.sleep.stopping import pause
from nightfill.sleep.warmth import to_keep_warm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from nightfill.config import SleepSettings
    from nightfill.contexts.context import ContextName, Tenant
    from nightfill.engines.engine import Description, Slice
    from nightfill.sleep.planner import State
    from nightfill.state.agenda import Due
    from nightfill.state.load import LoadBoard

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.2
RANK_EVERY_S: Final = 1.0
STEP: Final = 250
"""Contexts that are ranked in one go."""
MOST: Final = 100
"""Of the best contexts, known at a time: more than any engine has slots, for some may not fit into one."""
FAILED_WAIT_S: Final = 2.0
LOST: Final = "its slot was taken, or the engine restarted; computed again when idle"
OUTRANKED: Final = "other contexts are more valuable, and each takes a slot"


class WarmEngine(Engine, Protocol):
    """An engine in whose slots prefixes can be kept."""

    def warmed(self, wanted: Sequence[Prefix]) -> list[int]:
        """Tokens of each prefix that a slot holds now. From now on other requests take the slots of these prefixes
        last, and no other prefix's.
        """

    async def warm(self, prefix: Prefix, upto: int) -> Slice:
        """Compute the first `upto` tokens in a slot. Cancelling stops it within one batch and keeps what is done.

        Raises QueueFull when too many requests wait for slots.
        """


class Warmer:
    """The loop. `run` once; `clock` gives Unix seconds, `steady` this host's monotonic ones."""

    def __init__(
        self,
        state: State,
        board: LoadBoard,
        engine: WarmEngine,
        settings: SleepSettings,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._state = state
        self._board = board
        self._engine = engine
        # The engine is the one that serves: it must never be frozen.
        self._settings = msgspec.structs.replace(settings, freeze=False)
        self._clock = clock
        self._steady = steady
        self._sleep = sleep
        self._tokens: dict[FillKey, tuple[int, ...]] = {}
        self._impossible: set[FillKey] = set()
        self._best: dict[tuple[Tenant, ContextName], Due] = {}
        """Of the last whole walk through all contexts."""
        self._so_far: dict[tuple[Tenant, ContextName], Due] = {}
        """Of the walk under way."""
        self._place = ""
        self._ranked_s = float("-inf")
        self._noted: dict[FillKey, bool] = {}
        self._spent_s: dict[FillKey, float] = {}
        self._sizer = SliceSizer(
            min_tokens=settings.min_slice_tokens,
            max_tokens=settings.max_slice_tokens,
            max_s=float(settings.max_slice_s),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Keep contexts warm until `stop` is set, or cancelled. Never raises for what an engine or the state does."""
        gate = Gatekeeper(self._board, self._settings, stop=stop, clock=self._steady, sleep=self._sleep)
        while not stop.is_set():
            wait_s = LOOK_EVERY_S
            try:
                await self._round(gate)
            except QueueFull:
                wait_s = FAILED_WAIT_S
            except (EngineError, StateError) as exc:
                _log.warning("keeping warm: %s", exc)
                wait_s = FAILED_WAIT_S
            await pause(stop, wait_s, self._sleep)

    async def _round(self, gate: Gatekeeper) -> None:
        """Look once at what is to be warm, and compute what is not, most valuable first."""
        description = await self._engine.describe()
        if description.reuse is not Reuse.NONE:
            return
        wanted = await self._wanted(description, gate)
        prefixes = [Prefix(tokens=self._tokens[key], salt=salt_of(key.tenant)) for key in wanted]
        held = self._engine.warmed(prefixes)
        for key, prefix, tokens in zip(wanted, prefixes, held, strict=True):
            if _warm(tokens, len(prefix.tokens)):
                await self._note(key, warm=True)
                continue
            await self._note(key, warm=False)
            if not await self._replay(key, prefix, tokens, gate):
                return

    async def _wanted(self, description: Description, gate: Gatekeeper) -> list[FillKey]:
        """Those to keep warm that the engine can hold, with their tokens known."""
        if self._steady() - self._ranked_s >= RANK_EVERY_S:
            self._ranked_s = self._steady()
            await self._rank()
        found = {**self._best, **self._so_far}
        keys = to_keep_warm(
            [due.context for due in found.values()],
            {name: due.usage for name, due in found.items()},
            description,
            impossible=self._impossible,
            now_s=self._clock(),
        )
        for key in set(self._tokens) - set(keys):
            del self._tokens[key]
            if self._noted.pop(key, None) is not None:
                await self._state.book.mark_fill(key, state=FillState.EVICTED, reason=OUTRANKED, stored_tokens=0)
        wanted = []
        for key in keys:
            if key not in self._tokens:
                content = await whole_content(self._state.book, key.tenant, key.fingerprint)
                if content is None or not await gate.opens():
                    continue
                tokens = await self._engine.prefix_tokens(content, key.form)
                if not 0 < len(tokens) < description.context_length:
                    self._impossible.add(key)
                    await self._put(
                        key,
                        tokens,
                        FillState.EVICTED,
                        stored=0,
                        reason=too_long(len(tokens), description.context_length),
                    )
                    continue
                self._tokens[key] = tokens
            wanted.append(key)
        return wanted

    async def _rank(self) -> None:
        """A step of a walk through all contexts, of which the best are kept."""
        more, self._place = await self._state.agenda.after(self._place, limit=STEP)
        found = [*self._so_far.values(), *more]
        now_s = self._clock()

        def score(due: Due) -> float:
            return value(case_of(due.context, due.usage, now_s=now_s, default_ttl_s=DEFAULT_TTL_S)).score

        best = heapq.nlargest(MOST, found, key=score)
        self._so_far = {(due.context.tenant, due.context.name): due for due in best}
        if not self._place:
            self._best, self._so_far = self._so_far, {}

    async def _replay(self, key: FillKey, prefix: Prefix, reached: int, gate: Gatekeeper) -> bool:
        """Compute the prefix in slices behind the gate. False when it was cut short."""
        total = len(prefix.tokens)
        sizer = self._sizer
        spent_s = 0.0
        _log.info("a context of %d tokens begins to be warmed, at %d", total, reached)
        while reached < total:
            if not await gate.opens():
                return False
            wanted = sizer.next_tokens(freezes=False, live_ttft_s=gate.live_ttft_s)
            done, _ = await gate.run(self._engine, self._engine.warm(prefix, min(total, reached + wanted)))
            if done is None:
                return False
            sizer = sizer.after(tokens=done.computed, seconds=done.seconds)
            spent_s += done.seconds
            reached = done.reached
        self._spent_s[key] = spent_s
        await self._note(key, warm=True)
        _log.info("a context of %d tokens is warm", total)
        return True

    async def _note(self, key: FillKey, *, warm: bool) -> None:
        """Tell the book, where that is news."""
        if self._noted.get(key) is warm:
            return
        if not warm and key not in self._noted and await self._state.book.fill(key) is None:
            return
        # In either state the gateway names the tokens to the engine, which knows what its slots hold.
        state, reason = (FillState.READY, "") if warm else (FillState.FILLING, LOST)
        tokens = self._tokens[key]
        if await self._put(key, tokens, state, stored=len(tokens), reason=reason):
            self._noted[key] = warm

    async def _put(self, key: FillKey, tokens: tuple[int, ...], state: FillState, *, stored: int, reason: str) -> bool:
        return await self._state.book.put_fill(
            Fill(
                key=key,
                state=state,
                tokens=tokens,
                stored_tokens=stored,
                filled_at_s=self._clock(),
                fill_seconds=self._spent_s.get(key, 0.0),
                reason=reason,
            )
        )


def _warm(held: int, total: int) -> bool:
    return held >= total - min(BOUNDARY_TOKENS, total // 2)


@contextlib.asynccontextmanager
async def warming(warmer: Warmer, stop: asyncio.Event) -> AsyncIterator[None]:
    """Run it while inside."""
    task = asyncio.create_task(_guarded(warmer, stop), name="keep warm")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _guarded(warmer: Warmer, stop: asyncio.Event) -> None:
    try:
        await warmer.run(stop)
    except NightfillError as exc:
        _log.error("nothing is kept warm any more: %s", exc)
    except Exception:  # noqa: BLE001 - the outermost frame of the task
        # Requests are served cold then, which is no reason to stop serving them.
        _log.exception("nothing is kept warm any more")
