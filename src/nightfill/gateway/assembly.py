"""The front door put together, listening while it is inside its context."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """What the front door is put together from. The caller owns all of it, and closes it after the door."""

    settings: GatewaySettings
    contexts: ContextSettings
    engines: Sequence[Engine]
    book: ContextBook
    queue: JobQueue
    access: AccessLog
    board: LoadBoard
    metrics: Metrics
    forget: Forget | None = None
    """Drops the KV of a fill that no context needs any more."""
    plan: Planner | None = None
    """What would be filled next and why, as JSON."""
    accounts: Accounts | None = None
    """Bill and budgets, where they are to be shown."""
    audit_share: float = 0.0
    """Of the requests that a fill served, so many have it looked over."""
    machines: Mapping[str, str] | None = None
    """The kind of machine of each engine, by the engine's name."""
    autoscale: Autoscale | None = None
    """How many workers are wished for."""
    route: RouteSettings = field(default_factory=RouteSettings)
    """How engines are chosen."""
    histories: HistorySettings | None = None
    """Which chats are filled for their next turn."""
    discovery: Discovery | None = None
    """Looks for contexts in what was answered."""
    answers: AnswerRoom | None = None
    """What stored answers are kept in."""
    settle_s: float = 0.0
    """What other hosts need to see a change of a context."""
    keeper: Keeper | None = None
    """Puts models to sleep and wakes them."""
    experiments: Experiments | None = None
    """Which requests go another way."""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Server]:
        """Serve HTTP until left, then drain. Raises BadSetting when the address is taken or not allowed."""
        metrics = self.metrics
        journal = Journal(self.access, on_drop=metrics.rows_dropped)
        fleet = Fleet(self.engines, lead_tokens=self.route.lead_tokens)
        history = History(
            self.histories or HistorySettings(),
            book=self.book,
            signatures=fleet.signatures,
            on_turn=metrics.history_turn,
        )
        inference = self._inference(fleet, journal, history)
        for kept in (fleet, self.discovery, self.experiments):
            if kept is not None:
                metrics.watch(kept.samples)
        gateway = Gateway(
            admission=Admission(self.settings, self.board),
            inference=inference,
            admin=self._admin(fleet, inference),
            metrics=metrics,
        )
        async with contextlib.AsyncExitStack() as stack:
            for part in (journal, inference.stored, history, fleet, self.discovery):
                if part is not None:
                    await stack.enter_async_context(part)
            yield await stack.enter_async_context(Server(gateway, self.settings))

    def _inference(self, fleet: Fleet, journal: Journal, history: History) -> Inference:
        """What answers queries."""
        rates, answers = Rates(), self.answers
        return Inference(
            fleet=fleet,
            layers=Layers(Library(self.book), on_failure=lambda _: self.metrics.failed_open(), history=self.histories),
            book=self.book,
            board=self.board,
            journal=journal,
            metrics=self.metrics,
            audits=Audits(self.queue, share=self.audit_share),
            machines=self.machines,
            discovery=self.discovery,
            stored=answers.layer(rates=rates, metrics=self.metrics, note=journal.note) if answers is not None else None,
            rates=rates,
            history=history,
            experiments=self.experiments,
            limits=Limits(first_byte_s=self.settings.first_byte_timeout_s, idle_s=self.settings.idle_timeout_s),
        )

    def _admin(self, fleet: Fleet, inference: Inference) -> Admin:
        """What answers operators."""
        return Admin(
            book=self.book,
            queue=self.queue,
            limits=self.contexts,
            describe=inference.descriptions,
            engines=EnginesAdmin(
                describe=inference.descriptions,
                standings=fleet.standings,
                keeper=self.keeper,
                tenants=tuple(self.settings.api_keys),
            ),
            forget=self.forget,
            plan=self.plan,
            accounts=self.accounts,
            autoscale=self.autoscale,
            discovery=self.discovery,
            settle_s=self.settle_s,
            experiments=ExperimentsAdmin(self.experiments) if self.experiments is not None else None,
        )
