from __future__ import annotations

import sqlite3
import subprocess
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from nightfill.config import KvSettings
from nightfill.contexts import FillKey, FillState, Form, Message, Messages, Signature, fingerprint_of
from nightfill.contexts.context import DEFAULT_TENANT, Chat, ContextName, Fill, MessagesSource
from nightfill.kv import BlockMeta, open_store, salt_of, spans
from nightfill.sleep.description import note_of
from nightfill.state.jobs import Job, JobKind, JobState, WorkerId
from nightfill.state.sqlite import SqliteState, open_state

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.cli import Cli
    from nightfill.engines.engine import Description

TOKENS = tuple(range(300))


def filled(cli: Cli, name: str, signature: str, *, state: FillState = FillState.READY, tokens: int = 300) -> Fill:
    async def act(books: SqliteState) -> Fill:
        context = await books.book.get(DEFAULT_TENANT, ContextName(name))
        assert context is not None
        key = FillKey(
            tenant=DEFAULT_TENANT, fingerprint=context.current, form=Form.CHAT, signature=Signature(signature)
        )
        fill = Fill(key=key, state=state, tokens=TOKENS, stored_tokens=tokens, filled_at_s=1.0, fill_seconds=2.5)
        assert await books.book.put_fill(fill)
        return fill

    done: Fill = cli.state(act)
    return done


def jobs(cli: Cli) -> list[Job]:
    async def act(books: SqliteState) -> list[Job]:
        return await books.jobs.jobs()

    found: list[Job] = cli.state(act)
    return found


def seen(cli: Cli, description: Description) -> None:
    cli.state(lambda books: books.engines.put(description.engine, note_of(description)))


def test_a_folder_is_added_listed_and_shown(cli: Cli, folder: Path) -> None:
    out = cli.ok("context", "add", "repo", folder)
    assert out.startswith("added repo@")
    assert "(2 files; left out: 1 binary)" in out
    table = cli.ok("context", "ls")
    assert "repo" in table
    assert f"folder {folder}" in table
    assert "not filled" in table
    assert cli.ok("context", "show", "repo", "--text") == "# file: a.py\nprint(1)\n\n# file: b.md\nwords\n\n"
    view = cli.json("context", "show", "repo")
    assert (view["forms"], view["pinned"], view["ttl_s"], view["tenant"]) == (["chat"], False, None, "default")


def test_options_are_kept(cli: Cli, folder: Path) -> None:
    cli.ok("context", "add", "repo", folder, "--include", "*.py", "--form", "both", "--pin", "--ttl", "4h")
    (view,) = cli.json("context", "ls")
    assert (view["forms"], view["pinned"], view["ttl_s"]) == (["chat", "completion"], True, 14400)
    assert view["source"] == f"folder {folder} (*.py)"
    assert "repo*" in cli.ok("context", "ls")


def test_adding_again_says_what_changed(cli: Cli, folder: Path) -> None:
    assert cli.json("context", "add", "repo", folder)["did"] == "added"
    assert cli.json("context", "add", "repo", folder)["did"] == "unchanged"
    assert cli.json("context", "add", "repo", folder, "--pin")["did"] == "changed options"
    assert cli.ok("context", "add", "repo", folder, "--ttl", "4h").startswith("changed options of repo@")
    (folder / "a.py").write_text("print(2)\n")
    assert cli.json("context", "add", "repo", folder)["did"] == "changed"


def test_text_comes_from_a_file_or_standard_input(cli: Cli, folder: Path) -> None:
    cli.ok("context", "add", "one", "--text", folder / "b.md")
    cli.ok("context", "add", "two", "--text", "-", stdin="from\tinput")
    assert cli.ok("context", "show", "one", "--text") == "words\n"
    assert cli.ok("context", "show", "two", "--text") == "from\tinput"


def test_messages_are_kept_as_they_are(cli: Cli) -> None:
    text = '[{"role":"system","content":"You know the shop."},{"role":"user","content":"hi"}]'
    cli.ok("context", "add", "chat", "--messages", "-", stdin=text)
    assert cli.ok("context", "show", "chat", "--text").strip() == text
    assert "--form chat alone" in cli.refused("context", "add", "c", "--messages", "-", "--form", "both")


def test_files_and_git_revisions_are_sources(cli: Cli, folder: Path) -> None:
    cli.ok("context", "add", "files", folder / "b.md", folder / "a.py")
    assert cli.ok("context", "show", "files", "--text").startswith("# file: b.md")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "a.py"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    cli.ok("context", "add", "git", "--git", "HEAD", "--repo", folder)
    assert cli.ok("context", "show", "git", "--text") == "# file: a.py\nprint(1)\n\n"


REFUSED = [
    (("add", "Repo", "{folder}"), "context name 'Repo' is not allowed: 1 to 64 of a-z"),
    (("add", "repo"), "give one of: a folder or files, --text"),
    (("add", "repo", "{folder}", "--text", "-"), "give one of"),
    (("add", "repo", "{folder}", "{folder}/a.py"), "give one folder, or only files"),
    (("add", "repo", "{folder}/a.py", "--include", "*.py"), "--include goes with a folder"),
    (("add", "repo", "{folder}/gone"), "does not exist"),
    (("add", "repo", "{folder}", "--include", "*.rs"), "no file matches *.rs"),
    (("add", "repo", "{folder}/c.bin"), "not a text file"),
    (("add", "repo", "--text", "{folder}/c"), "No such file"),
    (("add", "repo", "--text", "{folder}/empty"), "empty"),
    (("add", "repo", "--messages", "{folder}/b.md"), "messages are not a JSON list"),
    (("add", "repo", "--git", "nowhere", "--repo", "{folder}"), "git"),
    (("add", "repo", "{folder}", "--ttl", "soon"), "must be a duration such as"),
    (("add", "repo", "{folder}", "--tenant", "A/B"), "tenant name 'A/B' is not allowed"),
    (("show", "nope"), "no context 'nope' of tenant 'default'; there is none"),
    (("rm", "nope"), "no context 'nope'"),
    (("fill", "nope"), "no context 'nope'"),
    (("refresh", "nope"), "no context 'nope'"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_clearly(
    cli: Cli, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    (folder / "empty").touch()
    assert message in cli.refused("context", *(argument.format(folder=folder) for argument in arguments))


def test_a_folder_too_large_is_refused_and_its_largest_file_named(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTFILL_CONTEXTS__MAX_BYTES", "30")
    error = cli.refused("context", "add", "repo", folder)
    assert "more than the 30 bytes that contexts.max_bytes allows" in error
    assert "the largest: a.py" in error
    assert (
        "of contexts.max_bytes" in cli.refused("context", "add", "repo", "--text", folder.parent / "src" / "long")
        if (folder / "long").write_text("x" * 31)
        else None
    )


def test_a_refresh_reads_sources_again(cli: Cli, folder: Path) -> None:
    cli.ok("context", "add", "repo", folder)
    cli.ok("context", "add", "note", "--text", folder / "b.md")
    assert cli.ok("context", "refresh", "repo") == "repo: unchanged\n"
    (folder / "a.py").write_text("print(2)\n")
    assert cli.json("context", "refresh") == [{"name": "note", "did": "fixed"}, {"name": "repo", "did": "changed"}]
    assert "print(2)" in cli.ok("context", "show", "repo", "--text")


def test_without_an_engine_seen_a_fill_says_what_to_start(cli: Cli, folder: Path) -> None:
    cli.ok("context", "add", "repo", folder)
    assert "start `nightfill serve --model FILE` first" in cli.refused("context", "fill", "repo")


def test_a_fill_is_queued_before_all_others(cli: Cli, folder: Path, description: Description) -> None:
    cli.ok("context", "add", "repo", folder, "--form", "both")
    seen(cli, description)
    assert "job 1 comes next" in cli.ok("context", "fill", "repo")
    first, second = jobs(cli)
    assert first.priority == second.priority == 1e9
    assert FillKey.parse(first.target).signature == description.signature
    assert len(cli.json("context", "fill", "repo")["jobs"]) == 2
    assert len(jobs(cli)) == 2  # the same jobs


def test_a_ready_fill_is_left_alone_unless_asked_again(cli: Cli, folder: Path, description: Description) -> None:
    cli.ok("context", "add", "repo", folder)
    seen(cli, description)
    filled(cli, "repo", description.signature)
    assert cli.ok("context", "fill", "repo", "--wait") == "repo (chat) is ready already\n"
    assert jobs(cli) == []
    assert "chat ready 300" in cli.ok("context", "ls")
    assert "comes next" in cli.ok("context", "fill", "repo", "--again")
    assert "stale" in cli.ok("context", "ls")


def test_a_dead_job_is_brought_back_by_asking(cli: Cli, folder: Path, description: Description) -> None:
    cli.ok("context", "add", "repo", folder)
    seen(cli, description)
    cli.ok("context", "fill", "repo")
    cli.state(kill)
    assert jobs(cli)[0].state is JobState.DEAD
    cli.ok("context", "fill", "repo")
    assert jobs(cli)[0].state is JobState.QUEUED


async def kill(books: SqliteState) -> None:
    lease = await books.jobs.lease(WorkerId("w"), kinds=[JobKind.FILL], lease_s=60)
    assert lease is not None
    await books.jobs.fail(lease, error="disk full", retry_in_s=None)


def test_waiting_ends_when_the_job_dies(
    cli: Cli, folder: Path, description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.ok("context", "add", "repo", folder)
    seen(cli, description)
    cli.ok("context", "fill", "repo")

    async def dies(_seconds: float) -> None:
        async with open_state(cli.data / "state.db") as books:
            await kill(books)

    monkeypatch.setattr("nightfill.cli.fill_now.asyncio.sleep", dies)
    assert "job 1 (repo) is dead: disk full" in cli.refused("context", "fill", "repo", "--wait", status=1)


def test_waiting_reports_tokens_and_seconds_when_done(
    cli: Cli, folder: Path, description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.ok("context", "add", "repo", folder)
    seen(cli, description)

    async def works(_seconds: float) -> None:
        async with open_state(cli.data / "state.db") as books:
            lease = await books.jobs.lease(WorkerId("w"), kinds=[JobKind.FILL], lease_s=60)
            assert lease is not None
            key = FillKey.parse(lease.job.target)
            fill = Fill(
                key=key, state=FillState.READY, tokens=TOKENS, stored_tokens=300, filled_at_s=1.0, fill_seconds=2.5
            )
            await books.book.put_fill(fill)
            await books.jobs.complete(lease)

    monkeypatch.setattr("nightfill.cli.fill_now.asyncio.sleep", works)
    assert cli.ok("context", "fill", "repo", "--wait") == "chat: 300 tokens ready, 2.5 s of engine time\n"
    assert cli.json("context", "fill", "repo", "--again", "--wait")["jobs"][0]["state"] == "done"


def test_waiting_is_bounded_and_says_when_nobody_works(
    cli: Cli, folder: Path, description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.ok("context", "add", "repo", folder)
    seen(cli, description)
    monkeypatch.setattr("nightfill.cli.fill_now._PATIENCE_S", 0.0)
    error = cli.refused("context", "fill", "repo", "--wait", "--timeout", "400ms", status=1)
    assert "nobody has taken the job yet: is `nightfill serve` running" in error
    assert "not done after 0.4 s; it goes on" in error


def test_a_change_is_told_once_all_gateways_know_of_it(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_s, there = 0.05, list[list[str]]()

    def asked(_: object) -> float:
        with closing(sqlite3.connect(cli.data / "state.db")) as db:
            there.append([str(row[0]) for row in db.execute("SELECT current FROM contexts")])
        return settle_s

    monkeypatch.setattr("nightfill.cli.context_changes.settle_s", asked)
    cli.ok("context", "add", "repo", folder)
    (folder / "a.py").write_text("print(2)\n")
    for command in ("refresh", "rm"):
        began_s = time.monotonic()
        cli.ok("context", command, "repo")
        assert time.monotonic() - began_s >= settle_s
    added, refreshed, removed = there
    assert len(added) == len(refreshed) == 1
    assert added != refreshed
    assert removed == []


def test_removing_takes_text_jobs_and_kv_but_not_what_others_need(
    cli: Cli, folder: Path, description: Description
) -> None:
    cli.ok("context", "add", "one", folder)
    (folder / "z.md").write_text("more\n")
    cli.ok("context", "add", "two", folder)
    seen(cli, description)
    cli.ok("context", "fill", "one")
    fill = filled(cli, "one", description.signature)
    filled(cli, "two", description.signature)  # the same tokens
    salt = salt_of(fill.key.tenant)
    keys = [span.key for span in spans(TOKENS, signature=fill.key.signature, salt=salt)]

    def stored() -> list[bool]:
        store = open_store(KvSettings(), data_dir=cli.data)
        try:
            return [store.has(key) for key in keys]
        finally:
            store.close()

    store = open_store(KvSettings(), data_dir=cli.data)
    meta = BlockMeta(kind="block", signature=fill.key.signature, start=0, stop=256)
    for key in keys:
        store.put(key, [b"x" * 100], meta, salt=salt)
    store.close()
    out = cli.ok("context", "rm", "one")
    assert out == "removed one: its text, 0 blocks of KV, 1 jobs\n"
    assert stored() == [True, True]
    assert cli.json("context", "rm", "two") == [
        {"name": "two", "jobs_cancelled": 0, "blocks_dropped": 2, "kv_left": ""}
    ]
    assert stored() == [False, False]
    assert cli.json("context", "ls") == []
    assert jobs(cli)[0].state is JobState.CANCELLED


def test_chats_are_shown_when_asked_for_and_go_with_their_context(cli: Cli, folder: Path) -> None:
    cli.ok("context", "add", "repo", folder)

    async def talk(books: SqliteState) -> None:
        context = await books.book.get(DEFAULT_TENANT, ContextName("repo"))
        assert context is not None
        content = Messages((Message("user", "hm"), Message("assistant", "yes")), behind=context.current)
        await books.book.put(
            tenant=DEFAULT_TENANT,
            name=ContextName("chat-1"),
            source=MessagesSource(Chat(context="repo", version=context.current)),
            content=content,
            fingerprint=fingerprint_of(content),
            forms=[Form.CHAT],
        )

    cli.state(talk)
    assert [one["name"] for one in cli.json("context", "ls")] == ["repo"]
    assert {one["name"]: one["source"] for one in cli.json("context", "ls", "--all")}["chat-1"] == "chat about repo"
    cli.ok("context", "rm", "repo")
    assert cli.json("context", "ls", "--all") == []


def test_a_version_that_another_name_has_stays(cli: Cli, folder: Path, description: Description) -> None:
    cli.ok("context", "add", "one", folder)
    cli.ok("context", "add", "two", folder)
    seen(cli, description)
    cli.ok("context", "fill", "two")
    filled(cli, "one", description.signature)
    assert cli.json("context", "rm", "one") == [
        {"name": "one", "jobs_cancelled": 0, "blocks_dropped": 0, "kv_left": ""}
    ]
    assert cli.json("context", "show", "two")["fills"][0]["state"] == "ready"
    assert jobs(cli)[0].state is JobState.QUEUED


def test_tenants_are_apart(cli: Cli, folder: Path) -> None:
    cli.ok("context", "add", "repo", folder, "--tenant", "acme")
    assert "no context" in cli.refused("context", "show", "repo")
    cli.ok("context", "add", "repo", folder)
    assert [row["tenant"] for row in cli.json("context", "ls")] == ["acme", "default"]
    assert "TENANT" in cli.ok("context", "ls")
    assert len(cli.json("context", "ls", "--tenant", "acme")) == 1
