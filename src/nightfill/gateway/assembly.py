"""The front door put together, listening while it is inside its context."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from nightfill.config import HistorySettings, RouteSettings
from nightfill.gateway.admin import Admin
from nightfill.gateway.admission import Admission
from nightfill.gateway.app import Gateway
from nightfill.gateway.audit import Audits
from nightfill.gateway.engines_admin import EnginesAdmin
from nightfill.gateway.experiments_admin import ExperimentsAdmin
from nightfill.gateway.fleet import Fleet
from nightfill.gateway.history import History
from nightfill.gateway.inference import Inference
from nightfill.gateway.journal import Journal
from nightfill.gateway.layers import Layers
from nightfill.gateway.library import Library
from nightfill.gateway.relay import Limits
from nightfill.gateway.saving import Rates
from nightfill.gateway.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from nightfill.config import ContextSettings, GatewaySettings
    from nightfill.engines.engine import Engine
    from nightfill.gateway.accounts import Accounts
    from nightfill.gateway.admin import Planner
    from nightfill.gateway.autoscale import Autoscale
    from nightfill.gateway.discovery import Discovery
    from nightfill.gateway.engines_admin import Keeper
    from nightfill.gateway.experiments import Experiments
    from nightfill.gateway.removal import Forget
    from nightfill.gateway.stored import AnswerRoom
    from nightfill.observe.metrics import Metrics
    from nightfill.state.access import AccessLog
    from nightfill.state.book import ContextBook
    from nightfill.state.jobs import JobQueue
    from nightfill.state.load import LoadBoard


@contextlib.asynccontextmanager
async def serving(
    *,
    settings: GatewaySettings,
    contexts: ContextSettings,
    engines: Sequence[Engine],
    book: ContextBook,
    queue: JobQueue,
    access: AccessLog,
    board: LoadBoard,
    metrics: Metrics,
    forget: Forget | None = None,
    plan: Planner | None = None,
    accounts: Accounts | None = None,
    audit_share: float = 0.0,
    machines: Mapping[str, str] | None = None,
    autoscale: Autoscale | None = None,
    route: RouteSettings | None = None,
    histories: HistorySettings | None = None,
    discovery: Discovery | None = None,
    answers: AnswerRoom | None = None,
    settle_s: float = 0.0,
    keeper: Keeper | None = None,
    experiments: Experiments | None = None,
) -> AsyncIterator[Server]:
    """Serve HTTP until left, then drain. The caller owns what it passes in, and closes it afterwards.

    forget: drops the KV of a fill that no context needs any more. plan: what would be filled next and why, as JSON.
    accounts: bill and budgets, where they are to be shown.
    audit_share: of the requests that a fill served, so many have it looked over. machines: the kind of machine of each
    engine, by the engine's name. autoscale: how many workers are wished for. route: how engines are chosen.
    histories: which chats are filled for their next turn. discovery: looks for contexts in what was answered.
    answers: what stored answers are kept in.
    settle_s: what other hosts need to see a change of a context. keeper: puts models to sleep and wakes them.
    experiments: which requests go another way.
    Raises BadSetting when the address is taken or not allowed.
    """
    journal = Journal(access, on_drop=metrics.rows_dropped)
    admission = Admission(settings, board)
    fleet = Fleet(engines, lead_tokens=(route or RouteSettings()).lead_tokens)
    rates = Rates()
    history = History(
        histories or HistorySettings(), book=book, signatures=fleet.signatures, on_turn=metrics.history_turn
    )
    inference = Inference(
        fleet=fleet,
        layers=Layers(Library(book), on_failure=lambda _: metrics.failed_open(), history=histories),
        book=book,
        board=board,
        journal=journal,
        metrics=metrics,
        audits=Audits(queue, share=audit_share),
        machines=machines,
        discovery=discovery,
        stored=answers.layer(rates=rates, metrics=metrics, note=journal.note) if answers is not None else None,
        rates=rates,
        history=history,
        experiments=experiments,
        limits=Limits(first_byte_s=settings.first_byte_timeout_s, idle_s=settings.idle_timeout_s),
    )
    admin = Admin(
        book=book,
        queue=queue,
        limits=contexts,
        describe=inference.descriptions,
        engines=EnginesAdmin(
            describe=inference.descriptions, standings=fleet.standings, keeper=keeper, tenants=tuple(settings.api_keys)
        ),
        forget=forget,
        plan=plan,
        accounts=accounts,
        autoscale=autoscale,
        discovery=discovery,
        settle_s=settle_s,
        experiments=ExperimentsAdmin(experiments) if experiments is not None else None,
    )
    metrics.watch(fleet.samples)
    if discovery is not None:
        metrics.watch(discovery.samples)
    if experiments is not None:
        metrics.watch(experiments.samples)
    gateway = Gateway(admission=admission, inference=inference, admin=admin, metrics=metrics)
    async with contextlib.AsyncExitStack() as stack:
        for part in (journal, inference.stored, history, fleet, discovery):
            if part is not None:
                await stack.enter_async_context(part)
        yield await stack.enter_async_context(Server(gateway, settings))
