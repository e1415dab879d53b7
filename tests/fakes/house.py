"""A whole gateway over fakes, on a real socket."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from fakes.engine import FakeEngine
from fakes.state import FakeAccessLog, FakeBoard, FakeBook, FakeQueue
from nightfill.config import ContextSettings, Duration, GatewaySettings, HistorySettings
from nightfill.gateway.assembly import FrontDoor
from nightfill.observe.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.contexts import Fill
    from nightfill.gateway.accounts import Accounts
    from nightfill.gateway.autoscale import Autoscale
    from nightfill.gateway.discovery import Discovery
    from nightfill.gateway.engines_admin import Keeper
    from nightfill.gateway.experiments import Experiments
    from nightfill.gateway.server import Server
    from nightfill.gateway.stored import AnswerRoom

CHAT: Final[dict[str, Any]] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class House:
    """A gateway over fakes, and what it is made of."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    others: list[FakeEngine] = field(default_factory=list)
    book: FakeBook = field(default_factory=FakeBook)
    queue: FakeQueue = field(default_factory=FakeQueue)
    access: FakeAccessLog = field(default_factory=FakeAccessLog)
    board: FakeBoard = field(default_factory=FakeBoard)
    metrics: Metrics = field(default_factory=Metrics)
    contexts: ContextSettings = field(default_factory=ContextSettings)
    forgotten: list[Fill] = field(default_factory=list)
    audit_share: float = 0.0
    accounts: Accounts | None = None
    machines: dict[str, str] = field(default_factory=dict)
    histories: HistorySettings = field(default_factory=HistorySettings)
    autoscale: Autoscale | None = None
    answers: AnswerRoom | None = None
    discovery: Discovery | None = None
    settle_s: float = 0.0
    experiments: Experiments | None = None
    keeper: Keeper | None = None
    settings: GatewaySettings = field(default_factory=lambda: GatewaySettings(port=0, drain_s=Duration(5)))

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Server]:
        async with FrontDoor(
            settings=self.settings,
            contexts=self.contexts,
            engines=[self.engine, *self.others],
            book=self.book,
            queue=self.queue,
            access=self.access,
            board=self.board,
            metrics=self.metrics,
            forget=self.forget,
            audit_share=self.audit_share,
            autoscale=self.autoscale,
            accounts=self.accounts,
            machines=self.machines,
            histories=self.histories,
            answers=self.answers,
            discovery=self.discovery,
            settle_s=self.settle_s,
            experiments=self.experiments,
            keeper=self.keeper,
        ).open() as server:
            yield server

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[aiohttp.ClientSession]:
        """A client whose relative addresses are the gateway's."""
        async with self.open() as server, aiohttp.ClientSession(server.url) as session:
            yield session

    async def forget(self, fill: Fill) -> None:
        self.forgotten.append(fill)

    def value(self, name: str, **labels: str) -> float:
        """A metric's value; 0 when it was never touched."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


async def post(client: aiohttp.ClientSession, path: str, **options: Any) -> int:
    """Post, read the answer to its end, and tell the status."""
    async with client.post(path, **options) as reply:
        await reply.read()
        return reply.status
