"""Contexts found in live traffic: prompts without a context go through a bounded sketch; what recurs becomes one.

Nothing of it is on the way of a request: a prompt that was answered is queued, and looked at in a thread. All of it is
in memory and goes with the process: hashes of prefixes, and the texts of those that recur often enough, sealed where
there is a key, for `keep_text_s` at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from nightfill.contexts import Content, ContextName, Form, Messages, content_bytes, fingerprint_of
from nightfill.contexts.context import MessagesSource, TextSource
from nightfill.contexts.discovery_mind import Candidate, Mind
from nightfill.contexts.discovery_prompt import BYTES_PER_TOKEN
from nightfill.contexts.discovery_volatile import varies
from nightfill.errors import NotFound, StateError
from nightfill.kv.key import salt_of
from nightfill.observe.metrics import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from nightfill.config import DiscoverySettings
    from nightfill.contexts import Context, Tenant
    from nightfill.gateway.layers import Plan
    from nightfill.state.access import AccessLog
    from nightfill.state.book import ContextBook
    from nightfill.state.seal import TextSeal

_LOG: Final = logging.getLogger(__name__)
_QUEUED: Final = 256
_QUEUED_BYTES: Final = 64 << 20
_SWEEP_S: Final = 30.0
_VARIANTS: Final = 2
"""So many found contexts that differ from another by short pieces alone, and the next one is not made."""
_FOUND: Final = re.compile(r"found-[0-9a-f]{8}")
_CONTENT: Final = msgspec.json.Decoder(Content)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A request that was answered."""

    tenant: Tenant
    members: dict[str, msgspec.Raw]
    context: ContextName | None
    """A found one that it begins with already."""
    at_s: float

    @property
    def size(self) -> int:
        return sum(memoryview(raw).nbytes for raw in self.members.values())


@dataclass(slots=True, kw_only=True)
class _Kept:
    """A text that may become a context, sealed."""

    sealed: bytes
    form: Form
    text_bytes: int
    until_s: float
    why: str


@dataclass(slots=True)
class _Known:
    """What is known of one tenant; no other one's requests touch it."""

    mind: Mind
    made: set[ContextName] = field(default_factory=set)
    """By this process; one that is there no more was deleted by somebody, and stays so."""
    kept: OrderedDict[ContextName, _Kept] = field(default_factory=OrderedDict)


class Discovery:
    """Looks for contexts in answered requests. Used by one event loop, as an asynchronous context manager.

    tenants: how many share `settings.max_bytes`. seal: for the texts that are kept.
    """

    def __init__(
        self,
        book: ContextBook,
        access: AccessLog,
        settings: DiscoverySettings,
        *,
        max_context_bytes: int,
        tenants: int,
        seal: TextSeal,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._book, self._access, self._settings = book, access, settings
        self._max_context_bytes = max_context_bytes
        self._seal = seal
        self._clock = clock
        self._share_bytes = int(settings.max_bytes) // max(1, tenants)
        self._least_bytes = max(1, round(settings.min_tokens * BYTES_PER_TOKEN))
        self._known: dict[Tenant, _Known] = {}
        self._queue: asyncio.Queue[_Seen] = asyncio.Queue(_QUEUED)
        self._queued_bytes = 0
        self._lock = asyncio.Lock()
        """Of all that is known: threads look at it one at a time."""
        self._task: asyncio.Task[None] | None = None
        self._swept_s = 0.0
        self._requests = self._dropped = self._registered = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="discovery")
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    def note(self, tenant: Tenant, plan: Plan) -> None:
        """A request was answered by this plan. Takes microseconds; where too many wait, it is not looked at.

        Left out are those about a context that somebody named, and those whose client wants nothing shared.
        """
        if plan.context is not None and not _FOUND.fullmatch(plan.context):
            return
        if not plan.call.reuse or plan.call.salt != salt_of(tenant):
            return
        seen = _Seen(tenant, dict(plan.call.body), plan.context, self._clock())
        if seen.size < self._least_bytes:
            return  # as JSON, and so as text
        if self._queued_bytes + seen.size > _QUEUED_BYTES or self._queue.full():
            self._dropped += 1
            return
        self._queued_bytes += seen.size
        self._queue.put_nowait(seen)

    async def settled(self) -> None:
        """Wait until all that was noted is looked at."""
        await self._queue.join()

    async def shown(self, tenant: Tenant) -> dict[str, Any]:
        """Answer `GET discovery`. Holds no text."""
        async with self._lock:
            self._purge()
            known = self._known.get(tenant)
            prefixes = await asyncio.to_thread(known.mind.prefixes) if known is not None else []
            kept = [
                {
                    "name": name,
                    "form": one.form,
                    "bytes": one.text_bytes,
                    "kept_until": one.until_s,
                    "why_not_registered": one.why,
                }
                for name, one in (known.kept.items() if known is not None else ())
            ]
            made = sorted(known.made) if known is not None else []
        return {
            "object": "list",
            "data": prefixes,
            "kept": kept,
            "registered": made,
            "min_tokens": self._settings.min_tokens,
            "requests": self._settings.requests,
            "registers": self._settings.register,
        }

    async def register(self, tenant: Tenant, name: ContextName) -> Context:
        """Make a context of a text that is kept. Raises NotFound, StateUnavailable."""
        async with self._lock:
            self._purge()
            known = self._known.get(tenant)
            kept = known.kept.get(name) if known is not None else None
            if known is None or kept is None:
                raise NotFound(
                    f"no text is kept as {name!r}; `nightfill discovered` shows those that are", param="name"
                )
            content = await asyncio.to_thread(lambda: _CONTENT.decode(self._seal.open(kept.sealed)))
            context = await self._put(tenant, name, content, kept.form)
            known.kept.pop(name, None)
            return context

    async def forget(self, tenant: Tenant, name: ContextName | None = None) -> None:
        """Drop all that is remembered of a tenant, or the text kept as `name`, which is not found again then."""
        async with self._lock:
            if name is None:
                self._known.pop(tenant, None)
            elif (known := self._known.get(tenant)) is not None:
                known.kept.pop(name, None)
                if _FOUND.fullmatch(name):
                    known.made.add(name)

    def samples(self) -> Iterable[Sample]:
        """Figures for metrics; no label tells a tenant."""
        knowns = list(self._known.values())
        for name, text, value in (
            (
                "discovery_requests_total",
                "Answered prompts that were looked at for recurring prefixes.",
                self._requests,
            ),
            ("discovery_dropped_total", "Answered prompts that were not looked at, as too many waited.", self._dropped),
            ("discovery_registered_total", "Contexts made of prefixes that recur.", self._registered),
        ):
            yield Sample(name=name, help=text, value=value, kind="counter")
        kept = [one for known in knowns for one in list(known.kept.values())]
        for name, text, value in (
            ("discovery_prefixes", "Prefixes that are remembered as hashes.", sum(len(known.mind) for known in knowns)),
            ("discovery_kept_bytes", "Texts that are kept, sealed.", sum(len(one.sealed) for one in kept)),
        ):
            yield Sample(name=name, help=text, value=value)

    # --- the task ---

    async def _run(self) -> None:
        while True:
            seen: _Seen | None = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_S):
                    seen = await self._queue.get()
            try:
                async with self._lock:
                    self._purge()
                    if seen is not None:
                        self._queued_bytes -= seen.size
                        await self._consider(seen)
                    await self._sweep()
            except StateError as exc:
                _LOG.warning("what recurs in requests could not be noted: %s", exc)
            except Exception:  # noqa: BLE001
                # The task's outermost frame: one prompt is lost, the next one is looked at.
                _LOG.exception("unexpected error while looking at a prompt")
            finally:
                if seen is not None:
                    self._queue.task_done()

    async def _consider(self, seen: _Seen) -> None:
        self._requests += 1
        known = self._known.get(seen.tenant)
        if known is None:
            known = self._known[seen.tenant] = _Known(self._new_mind(seen.tenant))
        found = await asyncio.to_thread(known.mind.look, seen.members, seen.at_s)
        if found is None:
            return
        why = await self._why_not(known, seen, found)
        if why is None and self._settings.register:
            await self._put(seen.tenant, found.name, found.content, found.form)
            known.kept.pop(found.name, None)
            _LOG.info("%d requests began alike: made a context of it", found.requests, extra={"context": found.name})
        elif why is None or why[1]:
            await self._keep(known, found, why[0] if why is not None else "discovery.register is off")
        known.mind.decide(found)

    def _new_mind(self, tenant: Tenant) -> Mind:
        return Mind(
            tenant,
            max_bytes=self._share_bytes // 2,
            least_bytes=self._least_bytes,
            requests=self._settings.requests,
            most_bytes=self._max_context_bytes,
        )

    async def _why_not(self, known: _Known, seen: _Seen, found: Candidate) -> tuple[str, bool] | None:
        """Why it is not made a context, and whether its text is kept all the same; None if nothing is in the way."""
        there = {context.name: context for context in await self._book.contexts(seen.tenant)}
        if found.name in there and found.form in there[found.name].forms:
            return "it is one already", False
        if found.name in known.made - there.keys():
            return "somebody deleted it", False
        within = there.get(seen.context) if seen.context is not None else None
        if within is not None and content_bytes(found.content) < within.content_bytes + self._least_bytes:
            return "it adds little to one that is found already", False
        others = [context for context in there.values() if _FOUND.fullmatch(context.name)]
        variants = 0
        for other in others:
            content = await self._book.content(seen.tenant, other.current)
            if content is not None and await asyncio.to_thread(
                varies, content, found.content, least_chars=self._least_bytes // 2
            ):
                variants += 1
        if variants >= _VARIANTS:
            return "a short piece of it changes", False
        if len(others) >= self._settings.max_contexts:
            return "discovery.max_contexts are found already", True
        return None

    async def _put(self, tenant: Tenant, name: ContextName, content: Content, form: Form) -> Context:
        before = await self._book.get(tenant, name)
        context = await self._book.put(
            tenant=tenant,
            name=name,
            source=MessagesSource() if isinstance(content, Messages) else TextSource(),
            content=content,
            fingerprint=fingerprint_of(content),
            forms=(form,) if before is None else tuple(dict.fromkeys((*before.forms, form))),
            pinned=before is not None and before.pinned,
            ttl_s=float(self._settings.ttl_s) if before is None else before.ttl_s,
            user="" if before is None else before.user,
        )
        self._known[tenant].made.add(name)
        self._registered += 1
        return context

    async def _keep(self, known: _Known, found: Candidate, why: str) -> None:
        sealed = await asyncio.to_thread(lambda: self._seal.seal(msgspec.json.encode(found.content)))
        known.kept[found.name] = _Kept(
            sealed=sealed,
            form=found.form,
            text_bytes=content_bytes(found.content),
            until_s=self._clock() + float(self._settings.keep_text_s),
            why=why,
        )
        while sum(len(one.sealed) for one in known.kept.values()) > self._share_bytes // 2:
            known.kept.popitem(last=False)

    def _purge(self) -> None:
        now_s = self._clock()
        for known in self._known.values():
            for name in [name for name, one in known.kept.items() if one.until_s <= now_s]:
                del known.kept[name]

    async def _sweep(self) -> None:
        """Found contexts that nobody has used for their time to live are deleted. Raises StateUnavailable."""
        now_s = self._clock()
        if now_s - self._swept_s < _SWEEP_S:
            return
        self._swept_s = now_s
        for context in await self._book.contexts():
            if not _FOUND.fullmatch(context.name) or context.ttl_s is None or context.pinned:
                continue
            usage = await self._access.usage(context.tenant, context.name, now_s=now_s)
            if now_s - max(context.updated_at_s, usage.last_access_s or 0.0) > context.ttl_s:
                await self._book.delete(context.tenant, context.name)
                if (known := self._known.get(context.tenant)) is not None:
                    known.made.discard(context.name)
                    known.mind.reconsider()
                _LOG.info("deleted a found context that nobody asks about", extra={"context": context.name})
