"""All books of one shared state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from nightfill.state.access import AccessLog
    from nightfill.state.agenda import Agenda
    from nightfill.state.answers import AnswerBook, QuestionLog
    from nightfill.state.book import SourceBook
    from nightfill.state.budgets import BudgetBook
    from nightfill.state.deletions import Deletions
    from nightfill.state.engines import EngineBook
    from nightfill.state.jobs import JobQueue
    from nightfill.state.ledger import LedgerBook
    from nightfill.state.seal import RenewableSeal


class State(Protocol):
    """What a store offers. Used from one event loop, by any number of processes; left, it is closed."""

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

    async def reseal_texts(self, seal: RenewableSeal) -> int:
        """Seal texts anew that are under an old key; how many were. Raises StateUnavailable."""

    async def aclose(self) -> None:
        """Finish what was begun and close. Idempotent."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...
