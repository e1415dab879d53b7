"""What a fleet asks of the state file: the tables of its sums, and the triggers that count new and forgotten jobs.

How deep the queue is, who is next, what is set aside and spent: all of it follows from the rows of `jobs`, and moves
with them, in whatever statement they move (`tally` writes down what updates move). So no code has to remember it, and
nothing of it costs more for more jobs.

A job is in one of these states, the first four of them seen as two from outside: `queued` (due), `waiting` (for its
retry), `leased`, `expired` (leased, but silent for too long: due, and still its holder's until somebody takes it),
`done`, `dead`, `cancelled`.
"""

from __future__ import annotations

from typing import Final

DUE_STATES: Final = ("queued", "expired")
DUE: Final = str(DUE_STATES)
HELD: Final = "('leased', 'expired')"
NOT_LEASED: Final = "state <> 'leased'"
"""What the index by state asks for; a statement has to say so, too."""
UNFINISHED_STATES: Final = ("queued", "waiting", "leased", "expired")
UNFINISHED: Final = str(UNFINISHED_STATES)


def size_of(tokens: int) -> int:
    """The class of jobs of such a length: 0 up to 1024 tokens, and one more for each doubling.

    Who writes a job's length writes its `size`, too: a column that SQLite computes itself would keep it from answering
    by the index alone.
    """
    return min(21, max(0, (max(1, tokens) - 1).bit_length() - 10))


SIZE: Final = " + ".join(f"(total_tokens > {1 << bits})" for bits in range(10, 31))
"""`size_of` as an expression."""
FIRST: Final = f"""SELECT j.id, j.priority FROM jobs j INDEXED BY jobs_due WHERE j.state IN {DUE}
    AND j.tenant = {{0}}.tenant AND j.kind = {{0}}.kind AND j.needs = {{0}}.needs AND j.size = {{0}}.size
    ORDER BY j.priority DESC, j.id LIMIT 1"""  # noqa: S608 - constants
"""The first of the due jobs of a lane. The index has it."""
_JOIN_LANE: Final = """
    INSERT INTO lanes VALUES (new.tenant, new.kind, new.needs, new.size, 1, new.id, new.priority)
        ON CONFLICT (tenant, kind, needs, size) DO UPDATE SET due = due + 1,
            first = iif(excluded.priority > priority, excluded.first, first),
            priority = max(priority, excluded.priority);
    INSERT INTO turns VALUES (new.tenant, (SELECT served FROM turn), 1)
        ON CONFLICT (tenant) DO UPDATE SET served = iif(due = 0, max(served, excluded.served), served), due = due + 1;
"""
# A list of more than two would become a table of its own each time.
_LEFT: Final = "max(0, {0}.total_tokens - {0}.done_tokens) * ({0}.ended = 0 AND {0}.state <> 'dead')"


def _each_budget(table: str, *, tokens: str, day: str = "") -> str:
    """Add `tokens` to the row of each budget that pays for the job `new`."""
    keys = "level, tenant, user" + (", day" if day else "")
    value = (f", {day}" if day else "") + f", {tokens}"
    return f"""INSERT INTO {table} SELECT 0, '', ''{value} UNION ALL SELECT 1, new.tenant, ''{value}
            UNION ALL SELECT 2, new.tenant, new.user{value} WHERE new.user <> ''
        ON CONFLICT ({keys}) DO UPDATE SET tokens = tokens + excluded.tokens;"""


_LEDGER_KEY: Final = "(day, tenant, context, machine, user)"
_DAY: Final = "CAST(new.updated_at_s / 86400 AS INTEGER)"

FLEET: Final[tuple[str, ...]] = (
    "ALTER TABLE contexts ADD COLUMN user TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE accesses ADD COLUMN user TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE accesses ADD COLUMN machine TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE accesses ADD COLUMN saved_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE accesses ADD COLUMN saved_s REAL NOT NULL DEFAULT 0",
    """CREATE TABLE access_hours (
        tenant TEXT NOT NULL,
        context TEXT NOT NULL,
        hour INTEGER NOT NULL,
        accesses INTEGER NOT NULL,
        broken INTEGER NOT NULL,
        last_s REAL NOT NULL,
        PRIMARY KEY (tenant, context, hour)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX access_hours_by_time ON access_hours (hour)",
    """INSERT INTO access_hours
        SELECT tenant, context, CAST(at_s / 3600 AS INTEGER), count(*), sum(broken), max(at_s)
        FROM accesses WHERE context IS NOT NULL GROUP BY 1, 2, 3""",
    "ALTER TABLE jobs ADD COLUMN user TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE jobs ADD COLUMN needs TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE jobs ADD COLUMN asked_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN reserved_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN lease_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN lease_s REAL NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN machine TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE jobs ADD COLUMN size INTEGER NOT NULL DEFAULT 0",
    f"UPDATE jobs SET size = {SIZE}",  # noqa: S608 - constants
    # Done or cancelled. A column of its own, since an index that asks for the state is written whenever that changes.
    "ALTER TABLE jobs ADD COLUMN ended INTEGER NOT NULL DEFAULT 0",
    "UPDATE jobs SET ended = 1 WHERE state IN ('done', 'cancelled')",
    "UPDATE jobs SET state = 'waiting' WHERE state = 'queued' AND not_before_s > 0",
    "DROP INDEX jobs_open_target",
    "CREATE UNIQUE INDEX jobs_open_target ON jobs (kind, target) WHERE NOT ended",
    # With all that a look at the first job of a lane asks for, or it would read the job itself.
    f"""CREATE INDEX jobs_due ON jobs (tenant, kind, needs, size, priority DESC, id, total_tokens, state)
        WHERE state IN {DUE}""",
    # What is leased and completed is written here twice, not four times; the leased ones have their own index.
    "DROP INDEX jobs_by_state",
    f"CREATE INDEX jobs_by_state ON jobs (state, priority DESC, id) WHERE {NOT_LEASED}",
    "CREATE INDEX jobs_waiting ON jobs (not_before_s) WHERE state = 'waiting'",
    "CREATE INDEX jobs_waiting_since ON jobs (updated_at_s) WHERE state = 'waiting'",
    "CREATE INDEX jobs_leased ON jobs (lease_boot, lease_until_s) WHERE state = 'leased'",
    "CREATE INDEX jobs_finished ON jobs (updated_at_s) WHERE ended",
    # The due jobs of a tenant that the same workers may take, and which of them comes first.
    """CREATE TABLE lanes (
        tenant TEXT NOT NULL,
        kind TEXT NOT NULL,
        needs TEXT NOT NULL,
        size INTEGER NOT NULL,
        due INTEGER NOT NULL,
        first INTEGER,
        priority REAL,
        PRIMARY KEY (tenant, kind, needs, size)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX lanes_by_needs ON lanes (needs, kind, size)",
    "CREATE INDEX lanes_left ON lanes (due) WHERE due = 0",
    # `served` is the virtual time of start-time fair queueing: tokens leased, over the weight. `turn` has that of the
    # whole queue.
    """CREATE TABLE turns (
        tenant TEXT PRIMARY KEY,
        served REAL NOT NULL,
        due INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX turns_next ON turns (served, tenant) WHERE due > 0",
    "CREATE TABLE turn (served REAL NOT NULL) STRICT",
    "INSERT INTO turn VALUES (0)",
    """CREATE TABLE queue_depth (
        kind TEXT PRIMARY KEY,
        due INTEGER NOT NULL,
        later INTEGER NOT NULL,
        leased INTEGER NOT NULL,
        tokens INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    f"""INSERT INTO lanes SELECT tenant, kind, needs, size, count(*), NULL, NULL FROM jobs WHERE state IN {DUE}
        GROUP BY 1, 2, 3, 4""",  # noqa: S608 - constants
    f"UPDATE lanes SET (first, priority) = ({FIRST.format('lanes')})",  # noqa: S608 - constants
    "INSERT INTO turns SELECT tenant, 0, sum(due) FROM lanes GROUP BY 1",
    f"""INSERT INTO queue_depth
        SELECT kind, sum(state IN {DUE}), sum(state = 'waiting'), sum(state = 'leased'),
            sum({_LEFT.format("jobs")}) FROM jobs GROUP BY 1""",  # noqa: S608 - constants
    # Level 0 is all together, 1 a tenant, 2 a user of it.
    """CREATE TABLE budget_limits (
        level INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        user TEXT NOT NULL,
        period TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        PRIMARY KEY (level, tenant, user, period)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE budget_reserved (
        level INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        user TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        PRIMARY KEY (level, tenant, user)
    ) STRICT, WITHOUT ROWID""",
    # By day, and a month is its days: so it stays right when the clock is set back.
    """CREATE TABLE budget_spent (
        level INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        user TEXT NOT NULL,
        day INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        PRIMARY KEY (level, tenant, user, day)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX budget_spent_by_day ON budget_spent (day)",
    """CREATE TABLE ledger (
        day INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        context TEXT NOT NULL,
        machine TEXT NOT NULL,
        user TEXT NOT NULL,
        background_tokens INTEGER NOT NULL DEFAULT 0,
        background_s REAL NOT NULL DEFAULT 0,
        fills INTEGER NOT NULL DEFAULT 0,
        requests INTEGER NOT NULL DEFAULT 0,
        hits INTEGER NOT NULL DEFAULT 0,
        saved_tokens INTEGER NOT NULL DEFAULT 0,
        saved_s REAL NOT NULL DEFAULT 0,
        PRIMARY KEY (day, tenant, context, machine, user)
    ) STRICT, WITHOUT ROWID""",
    f"""CREATE TRIGGER jobs_added AFTER INSERT ON jobs BEGIN
        {_JOIN_LANE}
        INSERT INTO queue_depth VALUES (new.kind, 1, 0, 0, {_LEFT.format("new")})
            ON CONFLICT (kind) DO UPDATE SET due = due + 1, tokens = tokens + excluded.tokens;
    END""",  # noqa: S608 - constants
    f"""CREATE TRIGGER jobs_reserve AFTER INSERT ON jobs WHEN new.reserved_tokens > 0 BEGIN
        {_each_budget("budget_reserved", tokens="new.reserved_tokens")}
    END""",
)
"""The fourth step of the schema."""

_DEAD: Final = "({0}.state = 'dead')"
_FAILING: Final = f"({{0}}.failures > 0 AND {{0}}.state IN {UNFINISHED})"

TROUBLES: Final[tuple[str, ...]] = (
    """CREATE TABLE job_troubles (
        kind TEXT PRIMARY KEY,
        failing INTEGER NOT NULL,
        dead INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    f"""INSERT INTO job_troubles SELECT kind, sum{_FAILING.format("jobs")}, sum{_DEAD.format("jobs")}
        FROM jobs WHERE NOT ended GROUP BY kind""",  # noqa: S608 - constants
    f"""CREATE TRIGGER jobs_forgotten AFTER DELETE ON jobs WHEN {_DEAD.format("old")} BEGIN
        UPDATE job_troubles SET dead = dead - 1 WHERE kind = old.kind;
    END""",  # noqa: S608 - constants
)
"""Of the fifth step of the schema."""
