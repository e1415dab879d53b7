"""Tables of the state file, as a list of steps that only go forward.

A published step is never edited: a change is a new step at the end, and `user_version` counts the steps taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.errors import StateUnavailable
from nightfill.state.sqlite.due import AGENDA
from nightfill.state.sqlite.sums import FLEET, TROUBLES

if TYPE_CHECKING:
    import sqlite3

APPLICATION_ID: Final = 0x4E466C31
"""`NFl1`; tells our file from any other SQLite file."""

STEPS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE versions (
            tenant TEXT NOT NULL,
            fingerprint TEXT NOT NULL,
            content BLOB NOT NULL,
            content_bytes INTEGER NOT NULL,
            created_at_s REAL NOT NULL,
            PRIMARY KEY (tenant, fingerprint)
        ) STRICT""",
        """CREATE TABLE contexts (
            tenant TEXT NOT NULL,
            name TEXT NOT NULL,
            source BLOB NOT NULL,
            forms TEXT NOT NULL,
            pinned INTEGER NOT NULL,
            ttl_s REAL,
            current TEXT NOT NULL,
            created_at_s REAL NOT NULL,
            updated_at_s REAL NOT NULL,
            checked_at_s REAL NOT NULL,
            PRIMARY KEY (tenant, name),
            FOREIGN KEY (tenant, current) REFERENCES versions (tenant, fingerprint)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX contexts_by_version ON contexts (tenant, current)",
        """CREATE TABLE fills (
            id INTEGER PRIMARY KEY,
            tenant TEXT NOT NULL,
            fingerprint TEXT NOT NULL,
            form TEXT NOT NULL,
            signature TEXT NOT NULL,
            state TEXT NOT NULL,
            stored_tokens INTEGER NOT NULL,
            filled_at_s REAL NOT NULL,
            fill_seconds REAL NOT NULL,
            reason TEXT NOT NULL,
            UNIQUE (tenant, fingerprint, form, signature),
            FOREIGN KEY (tenant, fingerprint) REFERENCES versions (tenant, fingerprint) ON DELETE CASCADE
        ) STRICT""",
        # Apart from its fill, whose small columns change at every checkpoint.
        """CREATE TABLE token_lists (
            fill INTEGER PRIMARY KEY REFERENCES fills (id) ON DELETE CASCADE,
            digest BLOB NOT NULL,
            tokens BLOB NOT NULL
        ) STRICT""",
        "CREATE TABLE book_changes (number INTEGER NOT NULL) STRICT",
        "INSERT INTO book_changes VALUES (1)",
        """CREATE TABLE jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL,
            target TEXT NOT NULL,
            tenant TEXT NOT NULL,
            label TEXT NOT NULL,
            priority REAL NOT NULL,
            state TEXT NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            failures INTEGER NOT NULL DEFAULT 0,
            lost INTEGER NOT NULL DEFAULT 0,
            not_before_s REAL NOT NULL DEFAULT 0,
            done_tokens INTEGER NOT NULL DEFAULT 0,
            kept_tokens INTEGER NOT NULL DEFAULT 0,
            total_tokens INTEGER NOT NULL DEFAULT 0,
            worker TEXT,
            lease_boot TEXT,
            lease_until_s REAL,
            error TEXT NOT NULL DEFAULT '',
            created_at_s REAL NOT NULL,
            updated_at_s REAL NOT NULL
        ) STRICT""",
        """CREATE UNIQUE INDEX jobs_open_target ON jobs (kind, target)
            WHERE state IN ('queued', 'leased', 'dead')""",
        "CREATE INDEX jobs_by_state ON jobs (state, priority DESC, id)",
        """CREATE TABLE accesses (
            id INTEGER PRIMARY KEY,
            at_s REAL NOT NULL,
            tenant TEXT NOT NULL,
            context TEXT,
            fingerprint TEXT,
            form TEXT NOT NULL,
            model TEXT NOT NULL,
            layer TEXT NOT NULL,
            prompt_tokens INTEGER NOT NULL,
            promised_tokens INTEGER NOT NULL,
            reused_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            ttft_s REAL NOT NULL,
            total_s REAL NOT NULL,
            restore_s REAL NOT NULL,
            status INTEGER NOT NULL,
            broken INTEGER NOT NULL
        ) STRICT""",
        "CREATE INDEX accesses_by_context ON accesses (tenant, context, at_s, broken)",
        "CREATE INDEX accesses_by_time ON accesses (at_s)",
        """CREATE TABLE engines (
            name TEXT PRIMARY KEY,
            body BLOB NOT NULL,
            seen_at_s REAL NOT NULL
        ) STRICT, WITHOUT ROWID""",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN note TEXT NOT NULL DEFAULT ''",
        # Apart from the jobs, which are pruned: what is counted here never gets less.
        """CREATE TABLE job_outcomes (
            kind TEXT NOT NULL,
            outcome TEXT NOT NULL,
            count INTEGER NOT NULL,
            PRIMARY KEY (kind, outcome)
        ) STRICT, WITHOUT ROWID""",
    ),
    (
        """CREATE TABLE deletions (
            key BLOB PRIMARY KEY,
            since_s REAL NOT NULL
        ) STRICT, WITHOUT ROWID""",
    ),
    FLEET,
    (
        "ALTER TABLE contexts ADD COLUMN options TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE contexts ADD COLUMN distilled TEXT",
        "CREATE INDEX contexts_by_distilled ON contexts (tenant, distilled) WHERE distilled IS NOT NULL",
        """CREATE TABLE answers (
            serial INTEGER PRIMARY KEY AUTOINCREMENT,
            key BLOB NOT NULL UNIQUE,
            scope BLOB NOT NULL,
            tenant TEXT NOT NULL,
            context TEXT NOT NULL,
            fingerprint TEXT NOT NULL,
            model TEXT NOT NULL,
            origin TEXT NOT NULL,
            question BLOB,
            body BLOB NOT NULL,
            at_s REAL NOT NULL,
            ttl_s REAL NOT NULL,
            until_s REAL AS (at_s + ttl_s) VIRTUAL,
            used_s REAL NOT NULL,
            uses INTEGER NOT NULL DEFAULT 0
        ) STRICT""",
        "CREATE INDEX answers_by_version ON answers (tenant, context, fingerprint)",
        "CREATE INDEX answers_by_use ON answers (used_s)",
        "CREATE INDEX answers_by_tenants_use ON answers (tenant, used_s)",
        "CREATE INDEX answers_by_end ON answers (until_s)",
        # Level 0 has all tenants together, level 1 each one.
        """CREATE TABLE answer_sums (
            level INTEGER NOT NULL,
            tenant TEXT NOT NULL,
            answers INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            PRIMARY KEY (level, tenant)
        ) STRICT, WITHOUT ROWID""",
        """CREATE TRIGGER answers_come AFTER INSERT ON answers BEGIN
            INSERT INTO answer_sums SELECT 0, '', 1, length(new.body) + coalesce(length(new.question), 0)
                UNION ALL SELECT 1, new.tenant, 1, length(new.body) + coalesce(length(new.question), 0) WHERE true
                ON CONFLICT (level, tenant) DO UPDATE SET answers = answers + 1, bytes = bytes + excluded.bytes;
        END""",
        """CREATE TRIGGER answers_go AFTER DELETE ON answers BEGIN
            UPDATE answer_sums SET answers = answers - 1,
                bytes = bytes - length(old.body) - coalesce(length(old.question), 0)
                WHERE (level, tenant) IN ((0, ''), (1, old.tenant));
            DELETE FROM answer_sums WHERE level = 1 AND tenant = old.tenant AND answers = 0;
        END""",
        """CREATE TABLE answer_counts (
            tenant TEXT NOT NULL,
            context TEXT NOT NULL,
            origin TEXT NOT NULL,
            stored INTEGER NOT NULL,
            used INTEGER NOT NULL,
            uses INTEGER NOT NULL,
            PRIMARY KEY (tenant, context, origin),
            FOREIGN KEY (tenant, context) REFERENCES contexts (tenant, name) ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE questions (
            id INTEGER PRIMARY KEY,
            tenant TEXT NOT NULL,
            context TEXT NOT NULL,
            asked BLOB NOT NULL,
            FOREIGN KEY (tenant, context) REFERENCES contexts (tenant, name) ON DELETE CASCADE
        ) STRICT""",
        "CREATE INDEX questions_by_context ON questions (tenant, context, id)",
        "ALTER TABLE accesses ADD COLUMN looked TEXT NOT NULL DEFAULT ''",
        *AGENDA,
        *TROUBLES,
    ),
)


def migrate(connection: sqlite3.Connection, *, steps: tuple[tuple[str, ...], ...] = STEPS) -> None:
    """Bring the file to the newest schema. Several processes may do so at once; each step is one transaction.

    Raises StateUnavailable when a newer nightfill wrote the file, or when it is not a state file of ours.
    """
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            _check(connection, version=version, newest=len(steps))
            if version == len(steps):
                return
            for statement in steps[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def _check(connection: sqlite3.Connection, *, version: int, newest: int) -> None:
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    if application != APPLICATION_ID and (application or version or tables):
        raise StateUnavailable("the state file is an SQLite file of another program")
    if version > newest:
        raise StateUnavailable(
            f"the state file has schema {version}, this nightfill knows up to {newest}: a newer nightfill wrote it"
        )
