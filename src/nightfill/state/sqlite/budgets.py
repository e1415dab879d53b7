"""Budgets in SQLite. What is set aside and spent moves with the jobs: see `sums`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nightfill.state.agenda import MOST_WOKEN
from nightfill.state.budgets import DAY_S, BudgetLine, BudgetRules, Period, Scope, refuse_beyond, scopes_of
from nightfill.state.sqlite.due import wake

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence

    from nightfill.state.sqlite.database import Database


class SqliteBudgetBook:
    """See `BudgetBook`. `rules` say what holds where no limit was set."""

    def __init__(self, database: Database, *, rules: BudgetRules, clock: Callable[[], float]) -> None:
        self._db = database
        self._rules = rules
        self._clock = clock

    async def users(self, tenant: str) -> list[Scope]:
        """See `BudgetBook`."""
        rows = self._db.read(
            """SELECT level, tenant, user FROM budget_limits WHERE level = 2 AND tenant = ?1
            UNION SELECT level, tenant, user FROM budget_reserved WHERE level = 2 AND tenant = ?1 AND tokens > 0
            UNION SELECT level, tenant, user FROM budget_spent
                WHERE level = 2 AND tenant = ?1 AND day >= ?2 AND tokens > 0
            ORDER BY user""",
            tenant,
            Period.MONTH.days(self._clock()).start,
        )
        return [_scope(row) for row in rows]

    async def lines(self, scopes: Sequence[Scope] | None = None) -> list[BudgetLine]:
        """See `BudgetBook`."""
        now_s = self._clock()
        if scopes is None:
            rows = self._db.read(
                """SELECT level, tenant, user FROM budget_limits
                UNION SELECT level, tenant, user FROM budget_reserved WHERE tokens > 0
                UNION SELECT level, tenant, user FROM budget_spent INDEXED BY budget_spent_by_day
                    WHERE day >= ? AND tokens > 0
                ORDER BY level, tenant, user""",
                Period.MONTH.days(now_s).start,
            )
            scopes = [_scope(row) for row in rows]
        return [
            _line(self._db.read, scope, period, now_s=now_s, limit=limit)
            for scope in scopes
            for period, limit in _limits(self._db.read, self._rules, scope)
        ]

    async def set_limit(self, scope: Scope, period: Period, tokens: int | None) -> None:
        """See `BudgetBook`."""
        key = (*_key(scope), period)

        def act(connection: sqlite3.Connection) -> None:
            if tokens is None:
                connection.execute(
                    "DELETE FROM budget_limits WHERE level = ? AND tenant = ? AND user = ? AND period = ?", key
                )
            else:
                connection.execute("INSERT OR REPLACE INTO budget_limits VALUES (?, ?, ?, ?, ?)", (*key, tokens))
            wake(connection, scope, self._clock(), most=MOST_WOKEN)

        await self._db.write(act, durable=True)


def check(
    connection: sqlite3.Connection, rules: BudgetRules, *, tenant: str, user: str, tokens: int, now_s: float
) -> None:
    """Raise BudgetSpent when a budget of the job has less than `tokens` left. Reads those alone that have a bound."""

    def read(sql: str, *values: object) -> list[Any]:
        return connection.execute(sql, values).fetchall()

    lines = (
        _line(read, scope, period, now_s=now_s, limit=limit)
        for scope in scopes_of(tenant, user)
        for period, limit in _limits(read, rules, scope)
        if limit[0] is not None
    )
    refuse_beyond(lines, tokens)


def _limits(
    read: Callable[..., list[Any]], rules: BudgetRules, scope: Scope
) -> Iterable[tuple[Period, tuple[int | None, bool]]]:
    """Each period's limit, and whether somebody has set it."""
    rows = read("SELECT period, tokens FROM budget_limits WHERE level = ? AND tenant = ? AND user = ?", *_key(scope))
    own = {row["period"]: row["tokens"] for row in rows}
    for period in Period:
        yield period, (own.get(period, rules.limit(scope, period)), period in own)


def _line(
    read: Callable[..., list[Any]],
    scope: Scope,
    period: Period,
    *,
    now_s: float,
    limit: tuple[int | None, bool],
) -> BudgetLine:
    days = period.days(now_s)
    sums = read(
        """SELECT
            (SELECT coalesce(sum(tokens), 0) FROM budget_spent
                WHERE level = ?1 AND tenant = ?2 AND user = ?3 AND day >= ?4 AND day < ?5) AS spent,
            coalesce((SELECT tokens FROM budget_reserved WHERE level = ?1 AND tenant = ?2 AND user = ?3), 0) AS reserved
        """,
        *_key(scope),
        days.start,
        days.stop,
    )[0]
    return BudgetLine(
        scope=scope,
        period=period,
        limit=limit[0],
        own=limit[1],
        spent=sums["spent"],
        reserved=sums["reserved"],
        resets_at_s=float(days.stop * DAY_S),
    )


def _key(scope: Scope) -> tuple[int, str, str]:
    if scope.tenant is None:
        return 0, "", ""
    return (1, scope.tenant, "") if scope.user is None else (2, scope.tenant, scope.user)


def _scope(row: Any) -> Scope:
    level, tenant, user = row
    return Scope() if level == 0 else Scope(tenant) if level == 1 else Scope(tenant, user)
