"""Contexts whose sources change by themselves, compared with them from time to time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nightfill.contexts.context import MessagesSource, TextSource
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.contexts.context import Content, Context, ContextName, Source, Tenant
    from nightfill.state.book import SourceBook

    Refresh = Callable[[Context], Content | None]
    """The content of the context's source as it is now, or None when nothing can have changed since the last call.

    Runs in a thread. Raises BadSource.
    """

_log = logging.getLogger(__name__)


class SourceWatch:
    """Looks at each source once per `every_s` and makes what it finds the current version. `clock`: Unix seconds."""

    def __init__(self, book: SourceBook, refresh: Refresh, *, every_s: float, clock: Callable[[], float]) -> None:
        self._book = book
        self._refresh = refresh
        self._every_s = every_s
        self._clock = clock
        self._looked_at_s: dict[tuple[Tenant, ContextName], float] = {}
        # What was found, but could not be made current: `refresh` will not tell it a second time.
        self._unsettled: dict[tuple[Tenant, ContextName], tuple[Source, Content]] = {}

    async def look(self, contexts: Sequence[Context]) -> int:
        """Compare what is due; the number of new versions. A source that cannot be read keeps its last version."""
        changed = 0
        names = {(context.tenant, context.name) for context in contexts}
        self._looked_at_s = {name: at_s for name, at_s in self._looked_at_s.items() if name in names}
        self._unsettled = {name: found for name, found in self._unsettled.items() if name in names}
        for context in contexts:
            if self._is_due(context):
                self._looked_at_s[context.tenant, context.name] = self._clock()
                changed += await self._compare(context)
        return changed

    def _is_due(self, context: Context) -> bool:
        if isinstance(context.source, TextSource | MessagesSource):
            return False
        # Ours alone counts and not `checked_at_s`: what was last seen by another process says nothing to `refresh`.
        looked_at_s = self._looked_at_s.get((context.tenant, context.name))
        return looked_at_s is None or not 0 <= self._clock() - looked_at_s < self._every_s

    async def _compare(self, context: Context) -> bool:
        name = (context.tenant, context.name)
        try:
            content = await asyncio.to_thread(self._refresh, context)
        except BadInput as exc:
            _log.warning("context %s/%s keeps its last version: %s", *name, exc)
            return False
        unsettled = self._unsettled.pop(name, None)
        if content is None and unsettled is not None and unsettled[0] == context.source:
            content = unsettled[1]
        fingerprint = context.current if content is None else fingerprint_of(content)
        if content is None or fingerprint == context.current:
            await self._book.checked(context.tenant, context.name)
            return False
        self._unsettled[name] = (context.source, content)
        replaced = await self._book.replace(context, content=content, fingerprint=fingerprint)
        if replaced is None:
            return False
        del self._unsettled[name]
        _log.info("context %s/%s: its source changed, %d bytes", *name, replaced.content_bytes)
        return True
