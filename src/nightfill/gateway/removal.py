"""Removing a context: its text, its jobs, and the KV that no other context needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.state.jobs import JobKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nightfill.contexts import Context, Fill
    from nightfill.state.book import ContextBook
    from nightfill.state.jobs import JobQueue

    Forget = Callable[[Fill], Awaitable[object]]


async def remove(context: Context, *, book: ContextBook, queue: JobQueue, forget: Forget | None) -> int | None:
    """Remove it; how many jobs that cancelled, or None when it was gone already. Raises StateUnavailable.

    `forget` drops the KV of a fill.
    """
    tenant, versions = context.tenant, set(context.versions)
    before = [await book.fill(outline.key) for outline in await book.outlines_of(tenant, *context.versions)]
    others = [other for other in await book.contexts(tenant) if other.name != context.name]
    versions.difference_update(version for other in others for version in other.versions)
    jobs = 0
    for version in versions:
        for kind in JobKind:
            jobs += await queue.cancel_target(kind=kind, target_prefix=f"{tenant}/{version}/")
    if not await book.delete(tenant, context.name):
        return None
    if forget is not None:
        for fill in before:
            if fill is not None and fill.key.fingerprint in versions:
                await forget(fill)
    return jobs
