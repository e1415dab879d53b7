"""The composition of the state file's books."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from nightfill.state.answers import AnswerBounds
from nightfill.state.jobs import QueueRules
from nightfill.state.process import boot_id
from nightfill.state.seal import NoSeal
from nightfill.state.sqlite.access import SqliteAccessLog
from nightfill.state.sqlite.agenda import SqliteAgenda
from nightfill.state.sqlite.answers import SqliteAnswerBook, SqliteQuestionLog
from nightfill.state.sqlite.book import SqliteBook
from nightfill.state.sqlite.budgets import SqliteBudgetBook
from nightfill.state.sqlite.database import Database
from nightfill.state.sqlite.deletions import SqliteDeletions
from nightfill.state.sqlite.fills import SqliteFills
from nightfill.state.sqlite.jobs import SqliteJobs
from nightfill.state.sqlite.ledger import SqliteLedgerBook
from nightfill.state.sqlite.notes import SqliteEngineBook
from nightfill.state.sqlite.record import Clocks
from nightfill.state.sqlite.rotation import reseal_texts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nightfill.state.access import AccessLog
    from nightfill.state.agenda import Agenda
    from nightfill.state.answers import AnswerBook, QuestionLog
    from nightfill.state.book import SourceBook
    from nightfill.state.budgets import BudgetBook
    from nightfill.state.deletions import Deletions
    from nightfill.state.engines import EngineBook
    from nightfill.state.jobs import JobQueue
    from nightfill.state.ledger import LedgerBook
    from nightfill.state.seal import RenewableSeal, TextSeal


class SqliteState:
    """All books in one file. Used from one event loop; any number of processes."""

    jobs: JobQueue
    book: SourceBook
    agenda: Agenda
    access: AccessLog
    budgets: BudgetBook
    ledger: LedgerBook
    engines: EngineBook
    deletions: Deletions
    answers: AnswerBook
    questions: QuestionLog

    def __init__(
        self,
        database: Database,
        *,
        rules: QueueRules,
        seal: TextSeal,
        clock: Callable[[], float],
        steady: Callable[[], float],
        boot: str,
        bounds: AnswerBounds,
    ) -> None:
        self._database = database
        clocks = Clocks(wall=clock, steady=steady, boot=boot)
        fills = SqliteFills(database, seal=seal, clock=clock)
        book = SqliteBook(database, fills, seal=seal, clock=clock)
        self.jobs, self.book = SqliteJobs(database, rules=rules, clocks=clocks), book
        self.agenda = SqliteAgenda(database, book, fills, clocks=clocks)
        self.access = SqliteAccessLog(database, clock=clock)
        self.budgets = SqliteBudgetBook(database, rules=rules.budgets, clock=clock)
        self.ledger = SqliteLedgerBook(database, clock=clock)
        self.engines = SqliteEngineBook(database, clock=clock)
        self.deletions = SqliteDeletions(database, clock=clock)
        self.answers = SqliteAnswerBook(database, seal=seal, bounds=bounds, clock=clock)
        self.questions = SqliteQuestionLog(database, seal=seal, most=bounds.questions)

    async def reseal_texts(self, seal: RenewableSeal) -> int:
        """Seal texts anew that are under an old key; how many were. Raises StateUnavailable."""
        return await reseal_texts(self._database, seal)

    async def aclose(self) -> None:
        """Finish what was submitted and close the file. Idempotent."""
        await self._database.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def boot_time() -> float:
    """Seconds since the host's boot, its sleep counted; the same for all its processes, and never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def open_state(
    path: Path,
    *,
    rules: QueueRules | None = None,
    seal: TextSeal | None = None,
    clock: Callable[[], float] = time.time,
    steady: Callable[[], float] = boot_time,
    boot: str | None = None,
    bounds: AnswerBounds | None = None,
) -> SqliteState:
    """Open or create the state file; missing folders are made with mode 0700, the file has 0600.

    `rules` must be the same for all processes that share the file; None for no budgets and equal weights.
    `seal` protects texts, sources, token lists, answers and questions; `bounds` says how many of these two are kept.
    `clock` gives Unix seconds; `steady` and `boot` tell leases, and are
    arguments for tests only. Blocks for a few milliseconds. Raises StateUnavailable: no permission, another program's
    file, a newer schema, a file system without shared memory.
    """
    database = Database(path)
    return SqliteState(
        database,
        rules=rules or QueueRules(),
        seal=seal or NoSeal(),
        clock=clock,
        steady=steady,
        boot=boot or boot_id(),
        bounds=bounds or AnswerBounds(),
    )
