"""Small jobs that join rooms: the store's upkeep, planning from the state, store figures as metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from nightfill.cli.views import plan_view
from nightfill.contexts import DEFAULT_TENANT, parse_tenant
from nightfill.contexts.context import FillState
from nightfill.errors import EngineError, StateError
from nightfill.kv.holdings import keys_of
from nightfill.kv.key import BlockKey, salt_of
from nightfill.observe.metrics import Sample
from nightfill.sleep.bill import Bill
from nightfill.sleep.description import seen_last
from nightfill.sleep.planner import plan_lines
from nightfill.sleep.priority import policy_of
from nightfill.sleep.upkeep import StoreUpkeep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence

    from nightfill.cli.rooms import Rooms
    from nightfill.contexts.context import Fill, FillKey, Tenant
    from nightfill.engines.llama.engine import LlamaEngine
    from nightfill.kv.report import StoreReport
    from nightfill.sleep.plan import PlanLine
    from nightfill.state.deletions import Deletions

_LOG: Final = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 1.0
_COUNT_BUCKET_EVERY_S: Final = 600.0


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[None]:
    """Run a task while inside; it is cancelled and awaited at the end, and its failure is logged."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        for failure in await asyncio.gather(task, return_exceptions=True):
            if isinstance(failure, Exception):
                _LOG.error("%s failed", name, exc_info=failure)


def store_upkeep(rooms: Rooms) -> StoreUpkeep:
    """What the worker does for the store."""
    settings = rooms.settings
    tenants = {DEFAULT_TENANT, *map(parse_tenant, settings.gateway.api_keys)}
    # Each count asks a bucket for a listing of all that lies in it, and that costs money.
    bucket = any(tier.kind == "s3" for tier in settings.kv.tiers)
    return StoreUpkeep(
        rooms.store,
        block_tokens=settings.kv.block_tokens,
        rotating=bool(settings.kv.old_key_files),
        salts=[salt_of(tenant) for tenant in tenants],
        count_every_s=_COUNT_BUCKET_EVERY_S if bucket else 0.0,
    )


async def forget_deleted(rooms: Rooms, engines: Sequence[LlamaEngine], stop: asyncio.Event) -> None:
    """Until `stop`: what no fill in the book names any more leaves the engines' memory too, whoever deleted it.

    So does what is no longer ready, or was filled again: our copies may be of what was wrong with it.
    """
    seen = -1
    ready: dict[FillKey, Fill] = {}
    old: frozenset[BlockKey] = frozenset()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY_S):
                await stop.wait()
        try:
            changes = rooms.state.book.changes()
            if 0 <= changes != seen:
                fills = await rooms.state.book.fills()
                now = {fill.key: fill for fill in fills if fill.state is FillState.READY}
                there = {fill.key for fill in fills}
                gone = [fill for key, fill in ready.items() if key not in there]
                other = [
                    fill
                    for key, fill in ready.items()
                    if key in there and (key not in now or now[key].filled_at_s != fill.filled_at_s)
                ]
                ready = now
                old |= await asyncio.to_thread(_left_over, gone, other, fills, rooms.settings.kv.block_tokens)
                await asyncio.to_thread(rooms.store.forget, old)
                doomed = old
                if held := frozenset[BlockKey]().union(*(engine.held for engine in engines)):
                    doomed |= held - await asyncio.to_thread(_named, fills, rooms.settings.kv.block_tokens)
                holding = [engine for engine in engines if not doomed.isdisjoint(engine.held)]
                if not all([await engine.forget(doomed) for engine in holding]):
                    continue
            seen, old = changes, frozenset()
        except (StateError, EngineError) as exc:
            _LOG.warning("what was deleted may still be in the engine's memory: %s", exc)


def _left_over(
    gone: Sequence[Fill], other: Sequence[Fill], fills: Sequence[Fill], block_tokens: int
) -> frozenset[BlockKey]:
    """Blocks of fills that are `gone`, but for those of `fills`, which are there; and all of fills that changed."""
    keys = _named(other, block_tokens)
    return keys | (_named(gone, block_tokens) - _named(fills, block_tokens)) if gone else keys


def _named(fills: Sequence[Fill], block_tokens: int) -> frozenset[BlockKey]:
    return frozenset(key for fill in fills for key in keys_of(fill, block_tokens=block_tokens))


async def plan_now(rooms: Rooms, tenant: Tenant | None = None) -> list[PlanLine]:
    """The plan by the state alone, for the engines seen last; no engine need run."""
    settings = rooms.settings
    lines = await plan_lines(
        rooms.state,
        seen_last(await rooms.state.engines.notes()),
        now_s=time.time(),
        policy=policy_of(settings.sleep, settings.prices),
        default_ttl_s=settings.kv.ttl_s,
        bill=Bill(rooms.state, prices=settings.prices, stop_after_s=float(settings.sleep.stop_unpaid_after_s)),
        priced=settings.sleep.policy == "value",
    )
    return [line for line in lines if tenant in (None, line.tenant)]


async def plan_shown(rooms: Rooms, tenant: Tenant, limit: int | None = None) -> list[dict[str, Any]]:
    """The plan as JSON, the first lines of it."""
    return [plan_view(line) for line in (await plan_now(rooms, tenant))[:limit]]


def deletion_samples(deletions: Deletions) -> Iterable[Sample]:
    """What was deleted, and could not be in some tier; nothing while the state cannot say."""
    try:
        blocks = deletions.owed().blocks
    except StateError as exc:
        _LOG.warning("deletions that are owed could not be counted: %s", exc)
        return
    help_text = "Blocks of what was deleted that may still lie in a tier out of reach."
    yield Sample(name="kv_deletions_owed", help=help_text, value=blocks)


def store_samples(report: StoreReport) -> Iterable[Sample]:
    """The store's figures, per tier."""
    for tier in report.tiers:
        labels = {"tier": tier.name}
        for name, help_text, value in (
            ("kv_bytes", "Bytes in a tier.", tier.bytes),
            ("kv_blocks", "Blocks in a tier.", tier.blocks),
            ("kv_max_bytes", "Bytes that a tier may hold.", tier.max_bytes),
            ("kv_old_key_blocks", "Blocks met that are still under an old key.", tier.old_keys),
            ("kv_free_bytes", "Bytes free on the device behind a tier, where it has one.", tier.free_bytes),
        ):
            if value is not None:
                yield Sample(name=name, help=help_text, value=value, labels=labels)
        for name, help_text, value in (
            ("kv_hits_total", "Blocks found.", tier.hits),
            ("kv_misses_total", "Blocks not found.", tier.misses),
            ("kv_corrupt_total", "Blocks whose bytes did not verify; each is a miss.", tier.corrupt),
            ("kv_errors_total", "Failures of the device behind a tier.", tier.errors),
            ("kv_evicted_total", "Blocks dropped to make room.", tier.evicted),
            ("kv_expired_total", "Blocks dropped after their time to live.", tier.expired),
            ("kv_unknown_key_total", "Reads of blocks under a key that no key file holds.", tier.unknown_key),
            ("kv_demoted_total", "Blocks taken from a tier above that needed room.", tier.demoted),
            ("kv_undemoted_total", "Blocks evicted that a tier below was to take, and did not.", tier.undemoted),
            ("kv_resealed_total", "Blocks sealed anew under the current key.", tier.resealed),
            ("kv_read_bytes_total", "Bytes read.", tier.read_bytes),
            ("kv_written_bytes_total", "Bytes written.", tier.written_bytes),
        ):
            yield Sample(name=name, help=help_text, value=value, kind="counter", labels=labels)
