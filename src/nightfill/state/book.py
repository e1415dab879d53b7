"""The book of contexts: names, versions and fills."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nightfill.contexts.context import (
        Content,
        Context,
        ContextName,
        ContextOptions,
        Fill,
        FillKey,
        FillState,
        Fingerprint,
        Form,
        Outline,
        Source,
        Tenant,
    )


class ContextBook(Protocol):
    """Contexts with their versions and fills. Each method is atomic; several processes may share one book.

    Raises StateUnavailable when the store behind it fails.
    """

    async def put(
        self,
        *,
        tenant: Tenant,
        name: ContextName,
        source: Source,
        content: Content,
        fingerprint: Fingerprint,
        forms: Sequence[Form],
        pinned: bool = False,
        ttl_s: float | None = None,
        user: str = "",
        options: ContextOptions | None = None,
    ) -> Context:
        """Create the context, or make `content` its current version. From the return on, no reader sees the old one.

        Versions that no context has any more go, with their text, the book's fills of them (the worker's sweep then
        drops the KV, which no fill names any more), and the jobs to fill or distil them, which are cancelled. The same
        fingerprint again only updates the options and `checked_at_s`.
        """

    async def put_distilled(self, context: Context, *, content: Content, fingerprint: Fingerprint) -> bool:
        """Make `content` the distilled version of `context.current`. False, and nothing is written, when the context is
        gone or has another version by now. It goes with the version that it was made of.
        """

    async def get(self, tenant: Tenant, name: ContextName) -> Context | None:
        """The context, or None. Cheap enough for every request."""

    async def contexts(self, tenant: Tenant | None = None) -> list[Context]:
        """All contexts of the tenant (of every tenant for None), by name."""

    async def delete(self, tenant: Tenant, name: ContextName) -> bool:
        """Remove the context, and what no other context of the tenant needs: text, fills. False when there is none."""

    async def content(self, tenant: Tenant, fingerprint: Fingerprint) -> Content | None:
        """The content of a version; immutable, so callers may cache it by fingerprint."""

    async def checked(self, tenant: Tenant, name: ContextName) -> None:
        """Note that the source was found unchanged now."""

    async def fill(self, key: FillKey) -> Fill | None:
        """The fill with its tokens, or None when absent."""

    async def fills(self, tenant: Tenant | None = None) -> list[Fill]:
        """All fills, with their tokens."""

    async def outlines_of(self, tenant: Tenant, *versions: Fingerprint) -> list[Outline]:
        """The fills of these versions, without their tokens."""

    def outlines(self) -> AsyncIterator[Sequence[Outline]]:
        """All fills without their tokens, some at a time; each is of one instant."""

    async def put_fill(self, fill: Fill) -> bool:
        """Insert or replace. False, and nothing is written, when no context has its version any more."""

    async def mark_fill(self, key: FillKey, *, state: FillState, reason: str, stored_tokens: int | None = None) -> bool:
        """Change the state of a fill; False when it is absent. `stored_tokens` None leaves that as it is."""

    async def drop_fill(self, key: FillKey) -> bool:
        """Remove a fill; False when it is absent."""

    async def is_empty(self) -> bool:
        """Whether there is no context at all. O(1)."""

    async def tenants(self) -> list[Tenant]:
        """Those with contexts."""

    def changes(self) -> int:
        """A number that differs after any change of the book by any process. Costs microseconds; does not block.

        Below 0, and another one each time, while it cannot be told what other processes have changed.
        """


class SourceBook(ContextBook, Protocol):
    """A book whose contexts somebody compares with their sources."""

    async def watched(self) -> list[Context]:
        """The contexts whose source may change by itself, and perhaps some of which that is not known yet."""

    async def replace(self, context: Context, *, content: Content, fingerprint: Fingerprint) -> Context | None:
        """Make `content` current, as found at its unchanged source, with all options as they are.

        None, and nothing is written, when the context was deleted or got another source or version since `context`
        was read: a slow look at a source must not bring back what somebody has replaced.
        """
