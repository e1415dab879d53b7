"""What the jobs of one transaction move in the sums of `sums`, written down once, at its end.

A trigger tells each update of a job, whichever statement it is of, to a function of ours. So no code has to remember
the sums, and what many jobs of one transaction have in common (the depth of the queue, the budget of all, a lane, a
tenant's turn) is written once for all of them. The trigger belongs to the connection that writes, not to the file: who
writes jobs past `Database` writes past its sums. New jobs and forgotten ones are counted by triggers of the file.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from nightfill.state.agenda import WOKEN
from nightfill.state.budgets import DAY_S, Scope
from nightfill.state.sqlite.due import ANY_WAITS, wake
from nightfill.state.sqlite.sums import DUE_STATES, FIRST, UNFINISHED_STATES

if TYPE_CHECKING:
    import sqlite3

_TELL: Final = """CREATE TEMP TRIGGER jobs_moved AFTER UPDATE OF
        state, total_tokens, done_tokens, failures, reserved_tokens, lease_tokens, lease_s ON main.jobs BEGIN
    SELECT job_moved(new.kind, new.tenant, new.user, new.label, new.machine, new.needs, old.size, old.state, new.state,
        old.total_tokens - old.done_tokens, new.total_tokens - new.done_tokens, old.failures, new.failures,
        old.reserved_tokens, new.reserved_tokens, new.lease_tokens - old.lease_tokens, new.lease_s - old.lease_s,
        new.updated_at_s);
END"""
_RANKED: Final = """CREATE TEMP TRIGGER jobs_ranked AFTER UPDATE OF priority ON main.jobs BEGIN
    SELECT job_ranked(new.tenant, new.kind, new.needs, new.size);
END"""
_DUE: Final = frozenset(DUE_STATES)
_UNFINISHED: Final = frozenset(UNFINISHED_STATES)

_DEPTH: Final = (
    "UPDATE queue_depth SET due = due + ?, later = later + ?, leased = leased + ?, tokens = tokens + ? WHERE kind = ?"
)
_TROUBLES: Final = """INSERT INTO job_troubles VALUES (?, ?, ?)
    ON CONFLICT (kind) DO UPDATE SET failing = failing + excluded.failing, dead = dead + excluded.dead"""
_NEW_LANES: Final = "INSERT OR IGNORE INTO lanes VALUES (?, ?, ?, ?, 0, NULL, NULL)"
_LANES: Final = f"""UPDATE lanes SET due = due + ?, (first, priority) = ({FIRST.format("lanes")})
    WHERE tenant = ? AND kind = ? AND needs = ? AND size = ?"""  # noqa: S608 - constants
_NO_LANES: Final = "DELETE FROM lanes WHERE due = 0"
# Who comes back into the queue begins where that is by now.
_TURNS: Final = """UPDATE turns SET due = due + ?1,
    served = coalesce(?2, iif(due = 0 AND ?1 > 0, max(served, (SELECT served FROM turn)), served)) WHERE tenant = ?3"""
_RESERVED: Final = """INSERT INTO budget_reserved VALUES (?, ?, ?, ?)
    ON CONFLICT (level, tenant, user) DO UPDATE SET tokens = tokens + excluded.tokens"""
_SPENT: Final = """INSERT INTO budget_spent VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (level, tenant, user, day) DO UPDATE SET tokens = tokens + excluded.tokens"""
_LEDGER: Final = """INSERT INTO ledger (day, tenant, context, machine, user, background_tokens, background_s, fills)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day, tenant, context, machine, user) DO UPDATE SET
        background_tokens = background_tokens + excluded.background_tokens,
        background_s = background_s + excluded.background_s, fills = fills + excluded.fills"""


class Tally:
    """Of the one connection that writes. Belongs to whoever is in its transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.create_function("job_moved", 18, self._moved)
        connection.execute(_TELL)
        connection.create_function("job_ranked", 4, self._ranked)
        connection.execute(_RANKED)
        self.forget()

    def forget(self) -> None:
        """The transaction is undone."""
        self._depth: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self._troubles: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._lanes: defaultdict[tuple[str, str, str, int], int] = defaultdict(int)
        self._turns: defaultdict[str, int] = defaultdict(int)
        self._served: dict[str, float] = {}
        self._reserved: defaultdict[tuple[int, str, str], int] = defaultdict(int)
        self._spent: defaultdict[tuple[int, str, str, int], int] = defaultdict(int)
        self._ledger: defaultdict[tuple[int, str, str, str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0])
        self._returned: dict[tuple[int, str, str], float] = {}
        self._empty = True

    def serve(self, tenant: str, served: float) -> None:
        """The virtual time of a tenant that has jobs is this, once all is written down."""
        self._served[tenant] = served

    def _moved(
        self, kind: str, tenant: str, user: str, label: str, machine: str, needs: str, size: int, was: str, state: str,
        had: int, has: int, failed: int, fails: int, held: int, holds: int, tokens: int, seconds: float, at_s: float,
    ) -> None:  # fmt: skip
        """One job, before and after an update. `tokens` and `seconds` are what it is charged, if they are positive."""
        self._empty = False
        had = had if had > 0 and was in _UNFINISHED else 0
        has = has if has > 0 and state in _UNFINISHED else 0
        if was != state or had != has:
            depth = self._depth[kind]
            due = (state in _DUE) - (was in _DUE)
            if due:
                depth[0] += due
                self._lanes[tenant, kind, needs, size] += due
                self._turns[tenant] += due
            depth[1] += (state == "waiting") - (was == "waiting")
            depth[2] += (state == "leased") - (was == "leased")
            depth[3] += has - had
        if fails or failed or state == "dead" or was == "dead":
            troubles = self._troubles[kind]
            troubles[0] += (fails > 0 and state in _UNFINISHED) - (failed > 0 and was in _UNFINISHED)
            troubles[1] += (state == "dead") - (was == "dead")
        if holds != held:
            for budget in _budgets(tenant, user):
                self._reserved[budget] += holds - held
                if not holds:
                    self._returned.setdefault(budget, at_s)
        filled = state == "done" and kind == "fill" and was != state
        charged = tokens > 0 or seconds > 0
        if filled or charged:
            day = int(at_s // DAY_S)
            entry = self._ledger[day, tenant, label, machine, user]
            entry[2] += filled
            if charged:
                entry[0] += tokens
                entry[1] += seconds
                for level, of_tenant, of_user in _budgets(tenant, user):
                    self._spent[level, of_tenant, of_user, day] += tokens

    def _ranked(self, tenant: str, kind: str, needs: str, size: int) -> None:
        """Another job may be the first of its lane now, if it is in one."""
        self._empty = False
        self._lanes[tenant, kind, needs, size] += 0

    def write(self) -> None:
        """Before the transaction ends, and before a statement in it reads the sums."""
        if self._empty:
            return
        rows: tuple[tuple[str, list[tuple[Any, ...]]], ...] = (
            (_DEPTH, [(*depth, kind) for kind, depth in self._depth.items()]),
            (_TROUBLES, [(kind, *troubles) for kind, troubles in self._troubles.items() if any(troubles)]),
            (_NEW_LANES, [lane for lane, due in self._lanes.items() if due > 0]),
            (_LANES, [(due, *lane) for lane, due in self._lanes.items()]),
            (_NO_LANES, [()] if self._lanes else []),
            (_TURNS, [(due, self._served.get(tenant), tenant) for tenant, due in self._turns.items()]),
            (_RESERVED, [(*budget, tokens) for budget, tokens in self._reserved.items() if tokens]),
            (_SPENT, [(*budget, tokens) for budget, tokens in self._spent.items() if tokens]),
            (_LEDGER, [(*key, *entry) for key, entry in self._ledger.items()]),
        )
        for sql, values in rows:
            if values:
                self._connection.executemany(sql, values)
        if self._returned and self._connection.execute(ANY_WAITS).fetchone()[0]:
            for (level, tenant, user), at_s in self._returned.items():
                scope = (Scope(), Scope(tenant), Scope(tenant, user))[level]
                wake(self._connection, scope, at_s, most=WOKEN)
        self.forget()


def _budgets(tenant: str, user: str) -> tuple[tuple[int, str, str], ...]:
    """The keys of those that pay."""
    shared = ((0, "", ""), (1, tenant, ""))
    return (*shared, (2, tenant, user)) if user else shared
