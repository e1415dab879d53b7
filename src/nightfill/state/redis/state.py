"""The composition of the books in Redis or Valkey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from nightfill.kv.resp import parse_url
from nightfill.state.answers import AnswerBounds
from nightfill.state.jobs import QueueRules
from nightfill.state.redis.access import RedisAccessLog
from nightfill.state.redis.agenda import RedisAgenda
from nightfill.state.redis.answers import RedisAnswerBook, RedisQuestionLog
from nightfill.state.redis.book import RedisBook
from nightfill.state.redis.budgets import RedisBudgetBook
from nightfill.state.redis.changes import RedisChanges
from nightfill.state.redis.deletions import RedisDeletions
from nightfill.state.redis.fills import RedisFills
from nightfill.state.redis.jobs import RedisJobs
from nightfill.state.redis.ledger import RedisLedgerBook
from nightfill.state.redis.loads import RedisLoads
from nightfill.state.redis.notes import RedisEngineBook
from nightfill.state.redis.rotation import reseal_texts
from nightfill.state.redis.server import Server
from nightfill.state.seal import NoSeal

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightfill.state.access import AccessLog
    from nightfill.state.agenda import Agenda
    from nightfill.state.answers import AnswerBook, QuestionLog
    from nightfill.state.book import SourceBook
    from nightfill.state.budgets import BudgetBook
    from nightfill.state.deletions import Deletions
    from nightfill.state.engines import EngineBook
    from nightfill.state.fleet_board import SharedLoads
    from nightfill.state.jobs import JobQueue
    from nightfill.state.ledger import LedgerBook
    from nightfill.state.seal import RenewableSeal, TextSeal

TIMEOUT_S: Final = 2.0


class RedisState:
    """All books on one server. Used from one event loop; any number of processes on any number of hosts."""

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

    def __init__(self, server: Server, *, rules: QueueRules, seal: TextSeal, bounds: AnswerBounds) -> None:
        self.server = server
        self._jobs = RedisJobs(server, rules=rules)
        self._changes = RedisChanges(server)
        fills = RedisFills(server, self._changes, seal=seal)
        book = RedisBook(server, fills, self._changes, seal=seal)
        self.jobs, self.book = self._jobs, book
        self.agenda = RedisAgenda(server, book, fills)
        self.access = RedisAccessLog(server)
        self.budgets = RedisBudgetBook(server, rules=rules.budgets)
        self.ledger = RedisLedgerBook(server)
        self.engines = RedisEngineBook(server)
        self.deletions = RedisDeletions(server)
        self.answers = RedisAnswerBook(server, seal=seal, bounds=bounds)
        self.questions = RedisQuestionLog(server, seal=seal, most=bounds.questions)
        self.loads: SharedLoads = RedisLoads(server)

    async def reseal_texts(self, seal: RenewableSeal) -> int:
        """Seal texts anew that are under an old key; how many were. Raises StateUnavailable."""
        return await reseal_texts(self.server, seal)

    async def aclose(self) -> None:
        """Give back what nobody waits for any more, and hang up. Idempotent."""
        await self._jobs.aclose()
        await self._changes.aclose()
        await self.server.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def open_redis_state(
    url: str,
    *,
    rules: QueueRules | None = None,
    seal: TextSeal | None = None,
    timeout_s: float = TIMEOUT_S,
    clock: Callable[[], float] | None = None,
    bounds: AnswerBounds | None = None,
) -> RedisState:
    """The state at `redis[s]://[user:password@]host[:port][/db]` or `unix:///path[?db=n]`. Does not connect yet.

    `rules` must be the same for all processes that share the state; None for no budgets and equal weights. `seal`
    protects texts, sources, token lists, answers and questions; `bounds` says how many of these two are kept. A server
    silent for `timeout_s` counts as away. `clock` gives Unix seconds in place of the server's, for tests only. Raises
    BadSetting, without the password, when the address is no such one.
    """
    server = Server(parse_url(url, param="state"), timeout_s=timeout_s, clock=clock)
    return RedisState(server, rules=rules or QueueRules(), seal=seal or NoSeal(), bounds=bounds or AnswerBounds())
