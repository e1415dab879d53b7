"""The book of contexts as the gateway reads it: cached until the book changes, bounded, and with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeVar

from nightfill.contexts import Entry, Form, Front, Index, content_bytes
from nightfill.errors import NotFound, StateUnavailable
from nightfill.state.bounded import within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from nightfill.contexts import Content, Context, ContextName, Fill, FillKey, Fingerprint, Tenant
    from nightfill.state.book import ContextBook

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
_MAX_CONTEXTS: Final = 4096
_MAX_FILLS: Final = 64
"""Each holds its tokens: about 1 MB for 32,768 of them."""
_INDEX_EVERY_S: Final = 0.25
_ASKED_AGAIN_S: Final = 0.1
_NO_CONTEXTS: Final = Index()


class Library:
    """Contexts, contents and fills for the request path. Used by one event loop.

    What was read stays valid while `book.changes()` stays the same, and goes on being used while the book fails or
    takes longer than `timeout_s`: nothing newer can be read then. What a request names and was never read is asked for
    again, for `patience_s`, since a server that was restarted or cut off is soon back; then it raises StateUnavailable.
    """

    def __init__(
        self,
        book: ContextBook,
        *,
        timeout_s: float = 2.0,
        patience_s: float = 5.0,
        max_content_bytes: int = 256 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = book
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._max_content_bytes = max_content_bytes
        self._clock = clock
        self._contexts: OrderedDict[tuple[Tenant, ContextName], tuple[int, Context]] = OrderedDict()
        """With the number of changes before which each was read; so the fills."""
        self._fills: OrderedDict[FillKey, tuple[int, Fill | None]] = OrderedDict()
        self._fronts: OrderedDict[tuple[Tenant, Fingerprint], tuple[Front, Content, int]] = OrderedDict()
        self._front_bytes = 0
        self._indexes: dict[Tenant, Index] = {}
        self._indexed_changes: int | None = None
        self._indexed_at_s = float("-inf")
        self._indexing = asyncio.Lock()

    async def context(self, tenant: Tenant, name: ContextName, *, anew: bool = False) -> Context:
        """The context as it is now; `anew` asks the book also where it seems unchanged, since it may be a moment behind
        what another process has changed. Raises NotFound, which tells how many others there are, not their names.
        """
        changes = self._book.changes()
        known = self._contexts.get((tenant, name))
        if known is not None and known[0] == changes and not anew:
            return known[1]
        if known is None:
            context = await self._patiently(lambda: self._asked(self._book.get(tenant, name)))
        else:
            try:
                context = await self._asked(self._book.get(tenant, name))
            except StateUnavailable:
                return known[1]
        if context is None:
            self._contexts.pop((tenant, name), None)
            others = len(await self._asked(self._book.contexts(tenant)))
            raise NotFound(f"there is no context {name!r}; {others} others are known", param="nightfill.context")
        _keep(self._contexts, (tenant, name), (changes, context), _MAX_CONTEXTS)
        return context

    async def fill(self, key: FillKey) -> Fill | None:
        """The fill as it is now, or None."""
        changes = self._book.changes()
        known = self._fills.get(key)
        if known is not None and known[0] == changes:
            self._fills.move_to_end(key)
            return known[1]
        try:
            fill = await self._asked(self._book.fill(key))
        except StateUnavailable:
            if known is None:
                raise
            return known[1]
        _keep(self._fills, key, (changes, fill), _MAX_FILLS)
        return fill

    async def front(self, tenant: Tenant, fingerprint: Fingerprint) -> Front | None:
        """The content of a version, ready to be put in front; None when it is gone by now."""
        held = await self._patiently(lambda: self._held(tenant, fingerprint))
        return held[0] if held is not None else None

    async def index(self, tenant: Tenant) -> Index:
        """What the tenant's contexts begin with; at most a quarter of a second behind what the book tells. It may wait
        for that: a prompt that it knows brings its text along.
        """
        if self._clock() - self._indexed_at_s >= _INDEX_EVERY_S:
            async with self._indexing:
                changes, now_s = self._book.changes(), self._clock()
                try:
                    if self._indexed_changes is None or 0 <= changes != self._indexed_changes:
                        self._indexes = await self._indexed(changes)
                        self._indexed_changes = changes
                except StateUnavailable:
                    if self._indexed_changes is None:
                        raise
                self._indexed_at_s = now_s
        return self._indexes.get(tenant, _NO_CONTEXTS)

    async def _indexed(self, changes: int) -> dict[Tenant, Index]:
        entries: dict[Tenant, list[Entry]] = {}
        size = 0
        for context in await self._asked(self._book.contexts()):
            if context.chat is not None:
                continue  # found by what was said, see `talk`
            _keep(self._contexts, (context.tenant, context.name), (changes, context), _MAX_CONTEXTS)
            size += context.content_bytes
            if size > self._max_content_bytes:
                break  # the rest can still be named
            held = await self._held(context.tenant, context.current)
            if held is not None:
                entry = Entry(
                    name=context.name,
                    fingerprint=context.current,
                    content=held[1],
                    forms=tuple(Form(form) for form in context.forms),
                    user=context.user,
                    options=context.options,
                )
                entries.setdefault(context.tenant, []).append(entry)
        return {tenant: Index(rows) for tenant, rows in entries.items()}

    async def _held(self, tenant: Tenant, fingerprint: Fingerprint) -> tuple[Front, Content, int] | None:
        key = (tenant, fingerprint)
        held = self._fronts.get(key)
        if held is not None:
            self._fronts.move_to_end(key)
            return held
        content = await self._asked(self._book.content(tenant, fingerprint))
        if content is None:
            return None
        # Twice: the text itself and its JSON.
        held = await asyncio.to_thread(lambda: (Front(content), content, 2 * content_bytes(content)))
        if key not in self._fronts:
            self._fronts[key] = held
            self._front_bytes += held[2]
            while self._front_bytes > 2 * self._max_content_bytes and len(self._fronts) > 1:
                self._front_bytes -= self._fronts.popitem(last=False)[1][2]
        return held

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        deadline_s = time.monotonic() + self._patience_s
        while True:
            try:
                return await ask()
            except StateUnavailable:
                if time.monotonic() + _ASKED_AGAIN_S >= deadline_s:
                    raise
            await asyncio.sleep(_ASKED_AGAIN_S)

    async def _asked(self, answer: Coroutine[Any, Any, T]) -> T:
        try:
            return await within(self._timeout_s, answer)
        except TimeoutError as exc:
            raise StateUnavailable(f"the book of contexts did not answer within {self._timeout_s:g} s") from exc


def _keep(cache: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)
