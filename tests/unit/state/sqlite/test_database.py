"""What the SQLite file itself keeps."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import stat
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nightfill.contexts.context import (
    ContextName,
    ContextOptions,
    Fill,
    FillKey,
    FillState,
    Fingerprint,
    Form,
    Signature,
    Tenant,
    Text,
    TextSource,
)
from nightfill.errors import StateUnavailable
from nightfill.state.envelope import wrap
from nightfill.state.jobs import JobKind, JobState, WorkerId
from nightfill.state.seal import NoSeal
from nightfill.state.sqlite import SqliteState, damage, open_state
from nightfill.state.sqlite.database import Database
from nightfill.state.sqlite.schema import STEPS, migrate

if TYPE_CHECKING:
    from pathlib import Path

T, REPO = Tenant("default"), ContextName("repo")
SECRET = "the-launch-code-is-4711"
KEY = FillKey(tenant=T, fingerprint=Fingerprint("f" * 64), form=Form.CHAT, signature=Signature("5" * 64))


class Xor:
    """A seal that hides bytes and refuses what it did not seal."""

    def __init__(self, key: int) -> None:
        self.key = key

    def seal(self, plain: bytes) -> bytes:
        return bytes([self.key]) + bytes(byte ^ self.key for byte in plain)

    def open(self, sealed: bytes) -> bytes:
        if sealed[0] != self.key:
            raise ValueError("another key")
        return bytes(byte ^ self.key for byte in sealed[1:])


async def put_secret(state: SqliteState, text: str = SECRET) -> None:
    await state.book.put(
        tenant=T,
        name=REPO,
        source=TextSource(),
        content=Text(text),
        fingerprint=Fingerprint(hashlib.sha256(text.encode()).hexdigest()),
        forms=[Form.CHAT],
    )


def everything(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_only_the_owner_may_read_the_file_and_the_folders_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "state.db"
    async with open_state(path) as state:
        await put_secret(state)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert set(modes.values()) == {0o600}
        assert "state.db-wal" in modes
        assert [stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)] == [0o700, 0o700]


async def test_sealed_texts_are_not_found_in_the_files(tmp_path: Path) -> None:
    async with open_state(tmp_path / "s.db", seal=Xor(7)) as state:
        await put_secret(state)
        assert SECRET.encode() not in everything(tmp_path)
        assert await state.book.content(T, Fingerprint(hashlib.sha256(SECRET.encode()).hexdigest())) == Text(SECRET)


async def test_another_key_and_flipped_bytes_are_an_error_and_never_a_text(tmp_path: Path) -> None:
    fingerprint = Fingerprint(hashlib.sha256(SECRET.encode()).hexdigest())
    async with open_state(tmp_path / "s.db", seal=Xor(7)) as state:
        await put_secret(state)
    async with open_state(tmp_path / "s.db", seal=Xor(8)) as state:
        with pytest.raises(StateUnavailable, match="another key"):
            await state.book.content(T, fingerprint)
    connection = sqlite3.connect(tmp_path / "s.db")
    sealed = bytearray(connection.execute("SELECT content FROM versions").fetchone()[0])
    sealed[-1] ^= 1
    connection.execute("UPDATE versions SET content = ?", (bytes(sealed),))
    connection.commit()
    connection.close()
    async with open_state(tmp_path / "s.db", seal=Xor(7)) as state:
        with pytest.raises(StateUnavailable, match="damaged"):
            await state.book.content(T, fingerprint)


def secret_fill() -> Fill:
    return Fill(
        key=replace(KEY, fingerprint=Fingerprint(hashlib.sha256(SECRET.encode()).hexdigest())),
        state=FillState.READY,
        tokens=(1, 2, 3),
        stored_tokens=3,
        filled_at_s=1.0,
        fill_seconds=1.0,
    )


async def test_under_another_key_fills_are_absent_and_contexts_can_be_put_again(tmp_path: Path) -> None:
    fill = secret_fill()
    async with open_state(tmp_path / "s.db", seal=Xor(7)) as state:
        await put_secret(state)
        assert await state.book.put_fill(fill)
    async with open_state(tmp_path / "s.db", seal=Xor(8)) as state:
        assert await state.book.fill(fill.key) is None
        assert await state.book.fills() == []
        assert [context.name for context in await state.book.contexts()] == [REPO]
        await put_secret(state)
        assert await state.book.content(T, fill.key.fingerprint) == Text(SECRET)
        assert await state.book.put_fill(fill)
        assert await state.book.fills() == [fill]


async def test_a_fill_whose_tokens_are_damaged_is_absent_until_it_is_written_again(tmp_path: Path) -> None:
    fill = secret_fill()
    async with open_state(tmp_path / "s.db") as state:
        await put_secret(state)
        assert await state.book.put_fill(fill)
    connection = sqlite3.connect(tmp_path / "s.db")
    sealed = bytearray(connection.execute("SELECT tokens FROM token_lists").fetchone()[0])
    sealed[-1] ^= 1
    connection.execute("UPDATE token_lists SET tokens = ?", (bytes(sealed),))
    connection.commit()
    connection.close()
    async with open_state(tmp_path / "s.db") as state:
        assert await state.book.fill(fill.key) is None
        assert await state.book.fills() == []
        assert await state.book.put_fill(fill)
        assert await state.book.fill(fill.key) == fill
    async with open_state(tmp_path / "s.db") as state:
        assert await state.book.fill(fill.key) == fill


async def test_a_deleted_text_is_in_no_file_any_more(tmp_path: Path) -> None:
    async with open_state(tmp_path / "s.db") as state:
        await put_secret(state, SECRET * 500)
        assert SECRET.encode() in everything(tmp_path)
        await state.book.delete(T, REPO)
        assert SECRET.encode() not in everything(tmp_path)


async def test_a_newer_schema_is_refused_with_words(tmp_path: Path) -> None:
    async with open_state(tmp_path / "s.db"):
        pass
    connection = sqlite3.connect(tmp_path / "s.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateUnavailable, match="schema 99, this nightfill knows up to 5"):
        open_state(tmp_path / "s.db")


def test_the_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "s.db")
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StateUnavailable, match="another program"):
        open_state(tmp_path / "s.db")


def test_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StateUnavailable, match="not a database"):
        open_state(tmp_path / "s.db")


async def test_a_whole_file_has_no_damage_and_a_torn_one_says_what(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_state(path) as state:
        await put_secret(state, SECRET * 3000)
        assert damage(path) == []
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 4)
    assert damage(path) != []
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StateUnavailable, match="not a database"):
        damage(path)


def test_a_file_that_may_not_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.db").mkdir()
    with pytest.raises(StateUnavailable):
        open_state(tmp_path / "s.db")


def test_migrations_only_go_forward_and_each_is_taken_once(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    migrate(connection)
    further = (*STEPS, ("CREATE TABLE added (x)", "INSERT INTO added VALUES (1)"))
    migrate(connection, steps=further)
    migrate(connection, steps=further)
    assert connection.execute("SELECT count(*) FROM added").fetchone()[0] == 1
    broken = (*further, ("CREATE TABLE half (x)", "CREATE TABLE half (x)"))
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, steps=broken)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(further)
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").fetchone()[0] == 0
    connection.close()


async def test_a_failing_transaction_leaves_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "s.db")

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE book_changes SET number = 999")
        connection.execute("INSERT INTO nowhere VALUES (1)")

    with pytest.raises(StateUnavailable, match="nowhere"):
        await database.write(half)
    assert database.read("SELECT number FROM book_changes")[0][0] == 1
    await database.aclose()


async def test_a_closed_state_says_so(tmp_path: Path) -> None:
    state = open_state(tmp_path / "s.db")
    await state.aclose()
    await state.aclose()
    with pytest.raises(StateUnavailable):
        await put_secret(state)
    with pytest.raises(StateUnavailable):
        await state.book.get(T, REPO)


async def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    async with open_state(tmp_path / "s.db") as state:
        await put_secret(state)
        other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert await state.book.get(T, REPO) is not None
        other.execute("ROLLBACK")
        other.close()


async def test_a_caller_who_leaves_while_leasing_takes_no_job_along(tmp_path: Path) -> None:
    async with open_state(tmp_path / "s.db") as state:
        job = await state.jobs.enqueue(kind=JobKind.FILL, target="x", tenant="t", label="l", priority=1)
        other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        claim = asyncio.create_task(state.jobs.lease(WorkerId("w"), kinds=[JobKind.FILL], lease_s=30))
        await asyncio.sleep(0)  # it runs up to where it waits for the writer, who waits for the other transaction
        claim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claim
        other.execute("ROLLBACK")
        other.close()
        await state.access.append([])
        await state.jobs.prune(older_than_s=1e9)  # comes after the claim and its undoing
        after = await state.jobs.get(job.id)
        assert after is not None
        assert (after.state, after.worker) == (JobState.QUEUED, None)


async def test_leases_of_an_earlier_boot_are_void(tmp_path: Path) -> None:
    async with open_state(tmp_path / "s.db", boot="monday", steady=lambda: 9e6) as state:
        await state.jobs.enqueue(kind=JobKind.FILL, target="x", tenant="t", label="l", priority=1)
        assert await state.jobs.lease(WorkerId("a"), kinds=[JobKind.FILL], lease_s=30)
    async with open_state(tmp_path / "s.db", boot="tuesday", steady=lambda: 3.0) as state:
        held = await state.jobs.lease(WorkerId("b"), kinds=[JobKind.FILL], lease_s=30)
        assert held is not None
        assert held.job.lost == 1


async def test_long_token_lists_are_written_once(tmp_path: Path) -> None:
    async with open_state(tmp_path / "s.db") as state:
        text_of_key = KEY.fingerprint
        await state.book.put(
            tenant=T, name=REPO, source=TextSource(), content=Text("x"), fingerprint=text_of_key, forms=[Form.CHAT]
        )
        fill = Fill(
            key=KEY,
            state=FillState.FILLING,
            tokens=tuple(range(200_000)),
            stored_tokens=0,
            filled_at_s=0,
            fill_seconds=0,
        )
        log = tmp_path / "s.db-wal"
        await state.book.put_fill(fill)
        first = log.stat().st_size
        for _ in range(20):
            await state.book.put_fill(fill)
        assert log.stat().st_size - first < 20 * 5 * 4200
        assert (await state.book.fills())[0].tokens == fill.tokens


DRAIN = """
import asyncio, sys
from pathlib import Path
from nightfill.state.envelope import wrap
from nightfill.state.jobs import JobKind, WorkerId
from nightfill.state.sqlite import open_state

async def main() -> None:
    async with open_state(Path(sys.argv[1])) as state:
        sys.stdin.readline()
        while (lease := await state.jobs.lease(WorkerId(sys.argv[2]), kinds=[JobKind.FILL], lease_s=60)) is not None:
            print(lease.job.id, lease.fence)
            await state.jobs.complete(lease)

asyncio.run(main())
"""


async def test_no_job_goes_to_two_processes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "s.db"
    # All four make the file at once: one of them creates it, the others find it half made.
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", DRAIN, str(path), f"w{n}", stdin=pipe, stdout=pipe)
        for n in range(4)
    ]
    async with open_state(path) as state:
        for n in range(200):
            await state.jobs.enqueue(kind=JobKind.FILL, target=f"t/{n}", tenant="t", label="l", priority=n % 3)
        async with asyncio.timeout(60):
            outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
        lines = [line for out, _ in outputs for line in out.splitlines()]
        assert [process.returncode for process in processes] == [0, 0, 0, 0]
        assert len(lines) == 200
        assert len(set(lines)) == 200
        assert all(line.endswith(b" 1") for line in lines)
        assert await state.jobs.jobs(states=[JobState.QUEUED, JobState.LEASED]) == []


async def test_a_file_of_the_fourth_schema_keeps_its_contexts_and_gives_them_default_options(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    old = sqlite3.connect(path, isolation_level=None)
    migrate(old, steps=STEPS[:4])
    text, source = wrap(NoSeal(), f"{T}/{'f' * 64}", b"irrelevant"), wrap(NoSeal(), f"{T}/repo", b'{"type":"text"}')
    old.execute("INSERT INTO versions VALUES (?, ?, ?, 5, 1.0)", (T, "f" * 64, text))
    old.execute(
        """INSERT INTO contexts (tenant, name, source, forms, pinned, current, created_at_s, updated_at_s, checked_at_s)
        VALUES (?, 'repo', ?, 'chat', 0, ?, 1.0, 1.0, 1.0)""",
        (T, source, "f" * 64),
    )
    old.close()
    async with open_state(path) as state:
        (found,) = await state.book.contexts()
        assert (found.options, found.distilled, found.current) == (ContextOptions(), None, "f" * 64)
        short = Text("short")
        assert await state.book.put_distilled(found, content=short, fingerprint=Fingerprint("d" * 64))
        assert await state.book.content(T, Fingerprint("d" * 64)) == short
