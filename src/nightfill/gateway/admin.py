"""nightfill's own routes, below `/v1/nightfill/`: contexts, jobs, engines, plan, ledger, budgets.

A caller sees its own tenant alone.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta

from nightfill.contexts import (
    FillKey,
    FillState,
    Form,
    Message,
    fingerprint_of,
    messages_content,
    parse_name,
    parse_user,
    text_content,
)
from nightfill.contexts.chats import about
from nightfill.contexts.context import (
    ContextOptions,
    FilesSource,
    FolderSource,
    GitSource,
    Messages,
    MessagesSource,
    TextSource,
)
from nightfill.contexts.sources import confined, read_source
from nightfill.errors import BadRequest, NotFound, WrongMethod
from nightfill.gateway.openai import Record, decode_members, decode_record
from nightfill.gateway.removal import remove
from nightfill.ledger import tokens_to_reserve
from nightfill.state.answers import FORESEEN
from nightfill.state.jobs import ASKED, JobKind, JobState
from nightfill.state.views import context_view, fill_view, job_view

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nightfill.config import ContextSettings
    from nightfill.contexts import Content, Context, ContextName, Source, Tenant
    from nightfill.engines.engine import Description
    from nightfill.gateway.accounts import Accounts
    from nightfill.gateway.admission import Admission
    from nightfill.gateway.autoscale import Autoscale
    from nightfill.gateway.discovery import Discovery
    from nightfill.gateway.engines_admin import EnginesAdmin
    from nightfill.gateway.exchange import Exchange
    from nightfill.gateway.experiments_admin import ExperimentsAdmin
    from nightfill.gateway.removal import Forget
    from nightfill.observe.metrics import Sample
    from nightfill.sleep.autoscale import Scale
    from nightfill.state.book import ContextBook
    from nightfill.state.jobs import Job, JobQueue

    Handler = Callable[[Tenant, bytes], Awaitable[tuple[int, object]]]
    Planner = Callable[[Tenant, int | None], Awaitable[object]]

PREFIX: Final = "/v1/nightfill/"
_READ_S: Final = 120.0
_CHANGING: Final = frozenset({"PUT", "DELETE"})
_FINISHED_SHOWN: Final = 100


class PutBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of `PUT contexts/{name}`: exactly one of text, messages and source."""

    text: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    source: FilesSource | FolderSource | GitSource | None = None
    forms: Annotated[list[Form], Meta(min_length=1)] | None = None
    """Default: both for text, chat alone for messages."""
    pinned: bool = False
    ttl_s: Annotated[float, Meta(gt=0)] | None = None
    user: str = ""
    """Whose it is within the tenant, and whose budget pays for its fills."""
    options: ContextOptions | None = None
    """What is done for it beyond filling; left out, as before."""


class PinBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST contexts/{name}/pin`."""

    pinned: bool = True


class Admin:
    """Answers below `PREFIX`. Used by one event loop.

    forget: drops the KV of a fill that no context needs any more. plan: what would be filled next and why, as JSON.
    settle_s: so long a change is confirmed later, as gateways of other hosts may not have seen it before.
    """

    def __init__(
        self,
        *,
        book: ContextBook,
        queue: JobQueue,
        limits: ContextSettings,
        describe: Callable[[], Awaitable[Sequence[Description]]],
        engines: EnginesAdmin,
        forget: Forget | None = None,
        plan: Planner | None = None,
        accounts: Accounts | None = None,
        autoscale: Autoscale | None = None,
        discovery: Discovery | None = None,
        settle_s: float = 0.0,
        experiments: ExperimentsAdmin | None = None,
    ) -> None:
        self._settle_s = settle_s
        self._book = book
        self._queue = queue
        self._limits = limits
        self._describe = describe
        self._forget = forget
        self._plan = plan
        self._accounts = accounts
        self._autoscale = autoscale
        self._discovery = discovery
        self._rooms: dict[str, EnginesAdmin | ExperimentsAdmin] = {"engines": engines}
        if experiments is not None:
            self._rooms["experiments"] = experiments

    async def job_counts(self) -> tuple[dict[str, int], int]:
        """Unfinished and dead jobs by state, of all tenants; and how many of the unfinished failed before. However many
        there are, it is asked for at each scrape.
        """
        depth, trouble = await self._queue.depth(), await self._queue.trouble()
        counts = {
            JobState.QUEUED: depth.due + depth.later,
            JobState.LEASED: depth.leased,
            JobState.DEAD: trouble.dead,
        }
        return {state.value: count for state, count in counts.items()}, trouble.failing

    async def audit_counts(self) -> dict[str, int]:
        """How often fills were compared with what engines compute, by outcome; of all tenants."""
        return await self._queue.outcomes(JobKind.VERIFY)

    async def foreseen_counts(self) -> dict[str, int]:
        """How many answers were prepared before anybody asked, by source; of all tenants."""
        counts = await self._queue.outcomes(JobKind.ANSWER)
        return {origin: counts[origin] for origin in FORESEEN if origin in counts}

    async def budget_samples(self) -> Sequence[Sample]:
        """What is spent of the budget of all together; nothing where accounts are not shown."""
        return await self._accounts.samples() if self._accounts is not None else ()

    async def scale(self) -> Scale | None:
        """How many workers are wished for and why; None where nobody says."""
        return await self._autoscale() if self._autoscale is not None else None

    async def answer(self, exchange: Exchange, admission: Admission) -> None:
        """Serve one request. Raises NightfillError while nothing was sent."""
        tenant = admission.tenant(exchange.headers)
        handlers = self._handlers(exchange.path.removeprefix(PREFIX).split("/"), exchange.query)
        if not handlers:
            raise NotFound(f"there is no {exchange.path[:200]!r} here")
        handler = handlers.get("GET" if exchange.method == "HEAD" else exchange.method)
        if handler is None:
            raise WrongMethod(f"{exchange.method} is not allowed on {exchange.path}", allowed=tuple(sorted(handlers)))
        async with admission.body(exchange) as body:
            status, value = await handler(tenant, body)
            if exchange.method in _CHANGING:
                await asyncio.sleep(self._settle_s)
            await exchange.respond_json(status, value)

    def _handlers(self, path: Sequence[str], query: bytes) -> dict[str, Handler]:
        """By method; none where there is nothing."""
        match path:
            case ["contexts"]:
                return {"GET": functools.partial(self._list, chats=_flag(query, "chats"))}
            case ["contexts", name, *action]:
                return self._context_handlers(parse_name(name, param="name"), action)
            case ["jobs"]:
                return {"GET": self._jobs}
            case ["engines" | "experiments" as room, *rest] if room in self._rooms:
                return self._rooms[room].handlers(rest)
            case ["plan"] if self._plan is not None:
                return {"GET": functools.partial(self._planned, query)}
            case ["autoscale"] if self._autoscale is not None:
                return {"GET": lambda _tenant, _body: self._scaled()}
            case ["ledger"] if self._accounts is not None:
                return {"GET": functools.partial(self._ledger, self._accounts, query)}
            case ["budgets"] if self._accounts is not None:
                return {"GET": functools.partial(self._budgets, self._accounts)}
            case ["discovery", *name]:
                return self._discovery_handlers(name)
        return {}

    def _discovery_handlers(self, name: Sequence[str]) -> dict[str, Handler]:
        discovery = self._discovery
        if discovery is None:
            raise NotFound("nothing is looked for in live traffic: `discovery.enabled` is off")
        match name:
            case []:
                return {
                    "GET": functools.partial(self._discovered, discovery),
                    "DELETE": functools.partial(self._forgotten, discovery),
                }
            case [one]:
                return {"POST": functools.partial(self._register, discovery, parse_name(one, param="name"))}
        return {}

    def _context_handlers(self, name: ContextName, action: Sequence[str]) -> dict[str, Handler]:
        match action:
            case []:
                return {
                    "GET": functools.partial(self._show, name=name),
                    "PUT": functools.partial(self._put, name=name),
                    "DELETE": functools.partial(self._delete, name=name),
                }
            case ["fill"]:
                return {"POST": functools.partial(self._fill, name=name)}
            case ["pin"]:
                return {"POST": functools.partial(self._pin, name=name)}
        return {}

    async def _list(self, tenant: Tenant, _: bytes, *, chats: bool) -> tuple[int, object]:
        fills = await self._book.fills(tenant)
        contexts = await self._book.contexts(tenant)
        shown = [context for context in contexts if chats or context.chat is None]
        return 200, {"object": "list", "data": [context_view(context, fills) for context in shown]}

    async def _show(self, tenant: Tenant, _: bytes, name: ContextName) -> tuple[int, object]:
        return 200, await self._shown(await self._known(tenant, name))

    async def _put(self, tenant: Tenant, body: bytes, name: ContextName) -> tuple[int, object]:
        ask = _decoded(body, PutBody)
        if sum(given is not None for given in (ask.text, ask.messages, ask.source)) != 1:
            raise BadRequest("give exactly one of text, messages and source")
        content, source = await self._content(ask)
        # As the command line does: filling both forms would cost twice as much, and most ask in one.
        forms = ask.forms or [Form.CHAT]
        if isinstance(content, Messages) and Form.COMPLETION in forms:
            raise BadRequest("a context of messages has only the form chat", param="forms")
        old = await self._book.get(tenant, name)
        context = await self._book.put(
            tenant=tenant,
            name=name,
            source=source,
            content=content,
            fingerprint=await asyncio.to_thread(fingerprint_of, content),
            forms=tuple(dict.fromkeys(forms)),
            pinned=ask.pinned,
            ttl_s=ask.ttl_s,
            user=parse_user(ask.user) if ask.user else "",
            options=ask.options,
        )
        return 201 if old is None else 200, await self._shown(context)

    async def _content(self, ask: PutBody) -> tuple[Content, Source]:
        if ask.text is not None:
            self._bounded(len(ask.text.encode()), "text")
            return text_content(ask.text), TextSource()
        if ask.messages is not None:
            self._bounded(sum(len(message.content.encode()) for message in ask.messages), "messages")
            return messages_content(ask.messages), MessagesSource()
        assert ask.source is not None
        source = await asyncio.to_thread(confined, ask.source, self._limits.roots)
        try:
            async with asyncio.timeout(_READ_S):
                return await asyncio.to_thread(read_source, source, self._limits), source
        except TimeoutError as exc:
            raise BadRequest(f"the source could not be read within {_READ_S:g} s", param="source") from exc

    def _bounded(self, size: int, param: str) -> None:
        if size > self._limits.max_bytes:
            raise BadRequest(
                f"{param} has {size} bytes; a context may have {int(self._limits.max_bytes)} (contexts.max_bytes)",
                param=param,
            )

    async def _delete(self, tenant: Tenant, _: bytes, name: ContextName) -> tuple[int, object]:
        context = await self._known(tenant, name)
        jobs = await remove(context, book=self._book, queue=self._queue, forget=self._forget)
        if jobs is None:
            raise _unknown(name)
        if self._discovery is not None:
            await self._discovery.forget(tenant, name)
        for chat in about(await self._book.contexts(tenant), name):
            jobs += await remove(chat, book=self._book, queue=self._queue, forget=self._forget) or 0
        return 200, {"name": name, "deleted": True, "jobs_cancelled": jobs}

    async def _fill(self, tenant: Tenant, _: bytes, name: ContextName) -> tuple[int, object]:
        context = await self._known(tenant, name)
        jobs: list[Job] = []
        ready: list[dict[str, Any]] = []
        for signature in dict.fromkeys(engine.signature for engine in await self._describe()):
            for form in context.forms:
                key = FillKey(tenant=tenant, fingerprint=context.current, form=form, signature=signature)
                fill = await self._book.fill(key)
                if fill is not None and fill.state is FillState.READY:
                    ready.append(fill_view(fill))
                    continue
                job = await self._queue.enqueue(
                    kind=JobKind.FILL,
                    target=str(key),
                    tenant=tenant,
                    label=name,
                    priority=ASKED,
                    total_tokens=len(fill.tokens) if fill is not None else 0,
                    user=context.user,
                    needs=signature,
                    reserve_tokens=tokens_to_reserve(context, fill),
                )
                if job.state is JobState.DEAD and await self._queue.retry(job.id):
                    job = await self._queue.get(job.id) or job
                jobs.append(job)
        return 202 if jobs else 200, {"name": name, "jobs": [job_view(job) for job in jobs], "ready": ready}

    async def _pin(self, tenant: Tenant, body: bytes, name: ContextName) -> tuple[int, object]:
        pinned = _decoded(body, PinBody).pinned if body.strip() else True
        context = await self._known(tenant, name)
        content = await self._book.content(tenant, context.current)
        if content is None:
            raise _unknown(name)
        context = await self._book.put(
            tenant=tenant,
            name=name,
            source=context.source,
            content=content,
            fingerprint=context.current,
            forms=context.forms,
            pinned=pinned,
            ttl_s=context.ttl_s,
            user=context.user,
        )
        return 200, await self._shown(context)

    async def _jobs(self, tenant: Tenant, _: bytes) -> tuple[int, object]:
        unfinished = await self._queue.jobs(states=(JobState.QUEUED, JobState.LEASED, JobState.DEAD))
        finished = await self._queue.jobs(states=(JobState.DONE, JobState.CANCELLED), limit=_FINISHED_SHOWN)
        rows = [job_view(job) for job in (*unfinished, *finished) if job.tenant == tenant]
        return 200, {"object": "list", "data": rows}

    async def _planned(self, query: bytes, tenant: Tenant, _: bytes) -> tuple[int, object]:
        assert self._plan is not None
        return 200, await self._plan(tenant, _number(query, "limit"))

    async def _ledger(self, accounts: Accounts, query: bytes, tenant: Tenant, _: bytes) -> tuple[int, object]:
        return 200, await accounts.billed(tenant, query)

    async def _budgets(self, accounts: Accounts, tenant: Tenant, _: bytes) -> tuple[int, object]:
        return 200, await accounts.budgeted(tenant)

    async def _discovered(self, discovery: Discovery, tenant: Tenant, _: bytes) -> tuple[int, object]:
        return 200, await discovery.shown(tenant)

    async def _forgotten(self, discovery: Discovery, tenant: Tenant, _: bytes) -> tuple[int, object]:
        await discovery.forget(tenant)
        return 200, {"forgotten": True}

    async def _register(self, discovery: Discovery, name: ContextName, tenant: Tenant, _: bytes) -> tuple[int, object]:
        return 201, await self._shown(await discovery.register(tenant, name))

    async def _shown(self, context: Context) -> dict[str, Any]:
        return context_view(context, await self._book.outlines_of(context.tenant, *context.versions))

    async def _scaled(self) -> tuple[int, object]:
        return 200, await self.scale()

    async def _known(self, tenant: Tenant, name: ContextName) -> Context:
        context = await self._book.get(tenant, name)
        if context is None:
            raise _unknown(name)
        return context


def _flag(query: bytes, name: str) -> bool:
    """Whether `?name=1` was said."""
    return parse_qs(query.decode("latin-1")).get(name) == ["1"]


def _number(query: bytes, name: str) -> int | None:
    """The whole number above 0 that `?name=` says; None where it says nothing. Raises BadRequest."""
    said = parse_qs(query.decode("latin-1")).get(name)
    if said is None:
        return None
    if not said[-1].isascii() or not said[-1].isdigit() or int(said[-1][:9]) < 1:
        raise BadRequest(f"{name} is a whole number above 0", param=name)
    return int(said[-1][:9])


def _unknown(name: ContextName) -> NotFound:
    return NotFound(f"there is no context {name!r}", param="nightfill.context")


def _decoded(body: bytes, record: type[Record]) -> Record:
    decode_members(body)
    return decode_record(body, record)
