"""When contexts are to be looked at: columns of `contexts` and `fills`, and what moves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.state.agenda import HEADSTART_S

if TYPE_CHECKING:
    import sqlite3

    from nightfill.state.budgets import Scope

_OF_JOB: Final = "substr(new.target, length(new.tenant) + 2, 64)"
ANY_WAITS: Final = "SELECT EXISTS (SELECT 1 FROM contexts WHERE waits_for IS NOT NULL)"
"""Whether a context waits for a budget."""

AGENDA: Final[tuple[str, ...]] = (
    "ALTER TABLE contexts ADD COLUMN look_s REAL NOT NULL DEFAULT 0",
    "ALTER TABLE contexts ADD COLUMN priority REAL NOT NULL DEFAULT 0",
    # As `waits_for` writes it.
    "ALTER TABLE contexts ADD COLUMN waits_for TEXT",
    # Its source may change by itself. What is not known of those from before, its first comparison tells.
    "ALTER TABLE contexts ADD COLUMN watched INTEGER NOT NULL DEFAULT 1",
    "CREATE INDEX contexts_by_look ON contexts (look_s)",
    "CREATE INDEX contexts_that_wait ON contexts (waits_for, priority DESC) WHERE waits_for IS NOT NULL",
    "CREATE INDEX contexts_watched ON contexts (watched) WHERE watched",
    # NULL for what was written before there was the column.
    "ALTER TABLE fills ADD COLUMN total_tokens INTEGER",
    f"""CREATE TRIGGER jobs_not_done AFTER UPDATE OF state ON jobs
        WHEN new.kind = 'fill' AND new.state IN ('dead', 'cancelled') AND old.state <> new.state BEGIN
        UPDATE contexts SET look_s = min(look_s, new.updated_at_s - {HEADSTART_S})
            WHERE tenant = new.tenant AND current = {_OF_JOB};
        UPDATE contexts SET look_s = min(look_s, new.updated_at_s - {HEADSTART_S})
            WHERE tenant = new.tenant AND distilled = {_OF_JOB};
    END""",  # noqa: S608 - constants
)
"""Of the fifth step of the schema."""


def look_now(connection: sqlite3.Connection, tenant: str, version: str, now_s: float) -> None:
    """The contexts that have this version are due at once."""
    for column in ("current", "distilled"):  # each has its index
        connection.execute(
            f"UPDATE contexts SET look_s = min(look_s, ?) WHERE tenant = ? AND {column} = ?",  # noqa: S608 - a constant
            (now_s - HEADSTART_S, tenant, version),
        )


def waits_for(scope: Scope) -> str:
    """The name of a budget in `contexts`: its level, tenant and user."""
    parts = (
        ("0",)
        if scope.tenant is None
        else ("1", scope.tenant)
        if scope.user is None
        else ("2", scope.tenant, scope.user)
    )
    return "/".join(parts)


def wake(connection: sqlite3.Connection, scope: Scope, now_s: float, *, most: int) -> None:
    """The first of those that wait for this budget are due at once."""
    connection.execute(
        """UPDATE contexts SET look_s = min(look_s, ?2) WHERE (tenant, name) IN
            (SELECT tenant, name FROM contexts WHERE waits_for = ?1 ORDER BY priority DESC LIMIT ?3)""",
        (waits_for(scope), now_s - HEADSTART_S, most),
    )
