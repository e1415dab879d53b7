"""A worker's surroundings in virtual time: state, load board, engines, and the worker itself."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fakes.fill_engine import SIGNATURE, FakeFillEngine, FillLog, FillStore
from fakes.virtual_time import now_s
from nightfill.config import Duration, SleepSettings
from nightfill.contexts.context import (
    Content,
    Context,
    ContextName,
    ContextOptions,
    FillKey,
    Form,
    Source,
    Tenant,
    Text,
    TextSource,
)
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.sleep.pool import EnginePool
from nightfill.sleep.worker import Worker
from nightfill.state.jobs import Job, WorkerId
from nightfill.state.load import Load
from nightfill.state.sqlite import SqliteState, open_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from nightfill.contexts.context import Fill, Outline
    from nightfill.sleep.duty import Duty
    from nightfill.sleep.upkeep import Upkeep
    from nightfill.sleep.windows import Windows

T = Tenant("default")
WALL_S = 1.7e9
SETTINGS = SleepSettings(quiet_s=Duration(0.02), max_slice_s=Duration(0.5))


class FakeBoard:
    """A load board that the test writes."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.idle_since_s = 0.0
        self.ttft_s = 0.0
        self.busy: list[tuple[float, float]] = []
        self._since_s = 0.0

    def enter(self) -> None:
        if self.in_flight == 0:
            self._since_s = now_s()
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self.idle_since_s = now_s()
            self.busy.append((self._since_s, now_s()))

    def note_ttft(self, seconds: float) -> None:
        self.ttft_s = seconds

    def read(self) -> Load:
        return Load(in_flight=self.in_flight, idle_since_s=self.idle_since_s, ttft_s=self.ttft_s)


class FakeUpkeep:
    """Counts as the test says, and remembers what it was told."""

    def __init__(self, count: Callable[[Sequence[Fill]], Mapping[FillKey, int]]) -> None:
        self._count = count
        self.learnt: dict[FillKey, Fill] = {}
        self.worth: dict[FillKey, float] = {}
        self.steps_left = 0
        self.renewed: list[tuple[float, frozenset[bytes]]] = []
        """When, and with which salts."""

    def unknown(self, fills: Iterable[Outline]) -> list[FillKey]:
        return [
            fill.key
            for fill in fills
            if fill.key not in self.learnt or self.learnt[fill.key].filled_at_s != fill.filled_at_s
        ]

    def learn(self, fill: Fill) -> None:
        self.learnt[fill.key] = fill

    def retain(self, worth: Mapping[FillKey, float]) -> None:
        self.worth = dict(worth)

    def publish(self) -> None:
        """Nobody shares this store."""

    def hold(self, fill: Fill, *, value: float) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def tend(self, fills: Collection[FillKey], pinned: Collection[FillKey]) -> Mapping[FillKey, int]:
        return self._count([fill for key, fill in self.learnt.items() if key in fills])

    def renew_due(self) -> bool:
        return self.steps_left > 0

    def renew(self, salts: Collection[bytes]) -> None:
        self.steps_left -= 1
        self.renewed.append((now_s(), frozenset(salts)))


@dataclass
class House:
    """Everything around a worker. `make_engine` says what the next engine is like."""

    state: SqliteState
    board: FakeBoard
    settings: SleepSettings = SETTINGS
    store: FillStore = field(default_factory=FillStore)
    log: FillLog = field(default_factory=FillLog)
    engines: list[FakeFillEngine] = field(default_factory=list)
    sources: dict[ContextName, Content] = field(default_factory=dict)
    upkeep: Upkeep | None = None
    names: tuple[str, ...] = ("local",)
    """Of the engines, all of them made by `make_engine`."""
    unshared: frozenset[str] = frozenset()
    """Engines that serve nobody."""
    sleepers: frozenset[str] = frozenset()
    """Engines whose models may sleep."""
    machines: dict[str, str] = field(default_factory=dict)
    windows: Windows | None = None
    duties: Sequence[Duty] = ()
    make_engine: Callable[[House], FakeFillEngine] = lambda house: FakeFillEngine(store=house.store, log=house.log)

    def wall(self) -> float:
        """Unix seconds."""
        return WALL_S + now_s()

    async def start_engine(self) -> FakeFillEngine:
        self.engines.append(self.make_engine(self))
        return self.engines[-1]

    async def put(
        self,
        text: str,
        *,
        name: str = "repo",
        source: Source | None = None,
        options: ContextOptions | None = None,
        pinned: bool = False,
    ) -> Context:
        content = Text(text)
        return await self.state.book.put(
            tenant=T,
            name=ContextName(name),
            source=source or TextSource(),
            content=content,
            fingerprint=fingerprint_of(content),
            forms=[Form.CHAT],
            options=options,
            pinned=pinned,
        )

    def worker(self, name: str = "w1") -> Worker:
        idle_stop_s = dict.fromkeys(self.names, 120.0)
        pool = EnginePool(dict.fromkeys(self.names, self.start_engine), idle_stop_s=idle_stop_s, clock=now_s)
        return Worker(
            self.state,
            self.board,
            pool,
            self.settings,
            refresh=lambda context: self.sources.get(context.name),
            upkeep=self.upkeep,
            unshared=self.unshared,
            sleepers=self.sleepers,
            machines=self.machines,
            windows=self.windows,
            duties=self.duties,
            worker=WorkerId(name),
            clock=self.wall,
            steady=now_s,
        )

    @contextlib.asynccontextmanager
    async def working(self, name: str = "w1") -> AsyncIterator[asyncio.Event]:
        """A worker at work; it is asked to stop at the end, and must do so within seconds."""
        stop = asyncio.Event()
        task = asyncio.create_task(self.worker(name).run(stop))
        try:
            yield stop
        finally:
            stop.set()
            async with asyncio.timeout(30):
                await task

    async def one_job(self) -> Job:
        (job,) = await self.state.jobs.jobs()
        return job


def key_of(context: Context) -> FillKey:
    return FillKey(tenant=context.tenant, fingerprint=context.current, form=Form.CHAT, signature=SIGNATURE)


@contextlib.asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    async with open_state(folder / "state.db", clock=lambda: WALL_S + now_s(), steady=now_s, boot="a boot") as state:
        yield House(state=state, board=FakeBoard())
