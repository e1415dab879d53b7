"""What the store is to keep: what its fills are worth, which are pinned, and which have left it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Final, Protocol

from nightfill.contexts.context import FillState
from nightfill.sleep.value import scores_of, values

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from nightfill.contexts.context import ContextName, Fill, FillKey, Outline, Tenant
    from nightfill.sleep.priority import Policy
    from nightfill.sleep.upkeep import Upkeep
    from nightfill.state.access import Usage
    from nightfill.state.agenda import Agenda, Due
    from nightfill.state.book import ContextBook

_log = logging.getLogger(__name__)

STEP: Final = 500
STEPS: Final = 10
"""Of contexts that are valued anew each time, so that it takes as long however many there are."""


class Books(Protocol):
    """The books that retention needs."""

    @property
    def agenda(self) -> Agenda:
        """What contexts there are."""

    @property
    def book(self) -> ContextBook:
        """What of them is filled."""


class Retention:
    """Tells one store what to keep. None for `upkeep`: there is no store here. Of one worker's event loop."""

    def __init__(
        self,
        state: Books,
        upkeep: Upkeep | None,
        *,
        policy: Policy,
        default_ttl_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._upkeep = upkeep
        self._policy = policy
        self._default_ttl_s = default_ttl_s
        self._clock = clock
        self._worth: dict[FillKey, float] = {}
        self._pinned: set[FillKey] = set()
        self._fresh: dict[FillKey, Outline] = {}
        """Seen since the store was told."""
        self._place = ""
        self._whole = False
        """All contexts were seen once."""

    async def see(self, found: Sequence[Due]) -> None:
        """Value the fills of these contexts; the store is told before the next fill, or when it is tended."""
        if self._upkeep is None:
            return
        group = {(due.context.tenant, due.context.name): due for due in found}
        for due in found:
            for version in due.context.versions if due.shared else ():
                for other in await self._state.agenda.having(due.context.tenant, version):
                    group.setdefault((other.context.tenant, other.context.name), other)
        fills = {fill.key: fill for due in found for fill in due.fills}
        contexts = [due.context for due in group.values()]
        self._worth |= values(
            contexts,
            list(fills.values()),
            _usages(group.values()),
            now_s=self._clock(),
            policy=self._policy,
            default_ttl_s=self._default_ttl_s,
        )
        pinned = {(one.tenant, version) for one in contexts if one.pinned for version in one.versions}
        self._pinned.difference_update(fills)
        self._pinned.update(key for key in fills if (key.tenant, key.fingerprint) in pinned)
        self._fresh |= fills

    async def tend(self, restored: Collection[str]) -> bool:
        """Value some contexts anew, and once all were seen: pin, sweep, and mark the fills whose bytes are gone, of the
        signatures in `restored`. False when they are not all seen yet, and it is to be called again soon.
        """
        if self._upkeep is None:
            return True
        for _ in range(STEPS):
            await asyncio.sleep(0)  # whoever watches for live requests comes in between
            found, self._place = await self._state.agenda.after(self._place, limit=STEP)
            await self.see(found)
            if not self._place:
                self._whole = True
                break
        if not self._whole:
            return False
        fills = {fill.key: fill async for some in self._state.book.outlines() for fill in some}
        self._worth = {key: value for key, value in self._worth.items() if key in fills}
        self._pinned.intersection_update(fills)
        self._fresh = fills
        await self._tell(self._upkeep)
        left = await asyncio.to_thread(self._upkeep.tend, fills.keys(), self._pinned)
        for key, fill in fills.items():
            tokens = left.get(key, fill.stored_tokens)
            if fill.state is FillState.READY and tokens < fill.stored_tokens and key.signature in restored:
                await self._gone(fill, tokens)
        return True

    async def holding(self, key: FillKey) -> Callable[[Fill], AbstractAsyncContextManager[None]]:
        """Tell the store what was seen, and while a fill is made, which may be new, that it is worth as much as its
        context's priority says.
        """
        if self._upkeep is None:
            return lambda _: nullcontext()
        upkeep = self._upkeep
        await self._tell(upkeep)
        found = await self._state.agenda.having(key.tenant, key.fingerprint)
        scores = scores_of(
            [due.context for due in found],
            _usages(found),
            now_s=self._clock(),
            policy=self._policy,
            default_ttl_s=self._default_ttl_s,
        )
        value = scores.get((key.tenant, key.fingerprint), 0.0)

        @asynccontextmanager
        async def holding(fill: Fill) -> AsyncIterator[None]:
            with upkeep.hold(fill, value=value):
                # Blocks of a fill may be stored by another process, where it must be worth as much.
                await asyncio.to_thread(upkeep.publish)
                yield

        return holding

    async def _tell(self, upkeep: Upkeep) -> None:
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, {}
        for key in upkeep.unknown(fresh.values()):
            fill = await self._state.book.fill(key)
            if fill is not None:
                await asyncio.to_thread(upkeep.learn, fill)
            elif fresh[key].state is FillState.READY and await self._state.book.fill(key) is None:
                # So it is filled again, and written anew.
                await self._state.book.mark_fill(key, state=FillState.STALE, reason="its tokens cannot be read")
        await asyncio.to_thread(upkeep.retain, dict(self._worth))

    async def _gone(self, seen: Outline, tokens: int) -> None:
        fill = await self._state.book.fill(seen.key)
        if fill is None or (fill.state, fill.stored_tokens, fill.filled_at_s) != (
            seen.state,
            seen.stored_tokens,
            seen.filled_at_s,
        ):
            return
        await self._state.book.mark_fill(
            seen.key, state=FillState.EVICTED, reason="its bytes left the store", stored_tokens=tokens
        )
        _log.info("a fill of %d tokens has left the store, %d remain", seen.total_tokens, tokens)


def _usages(found: Iterable[Due]) -> dict[tuple[Tenant, ContextName], Usage]:
    return {(due.context.tenant, due.context.name): due.usage for due in found}
