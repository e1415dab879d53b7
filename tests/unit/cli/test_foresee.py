from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.contexts.context import ContextName, Fill, FillState, Tenant
from nightfill.sleep.description import note_of
from nightfill.sleep.predict_job import target_of
from nightfill.state.answers import Asked
from nightfill.state.jobs import ASKED, JobKind

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.cli import Cli
    from nightfill.contexts.context import Context
    from nightfill.engines.engine import Description
    from nightfill.state.sqlite import SqliteState

T, REPO = Tenant("default"), ContextName("repo")


def add(cli: Cli, folder: Path, *options: str) -> None:
    cli.ok("context", "add", "repo", folder, *options)
    asked = [Asked(text="How does it all begin?", at_s=1.0)]
    cli.state(lambda books: books.questions.note(T, REPO, asked))


def filled(cli: Cli, description: Description) -> None:
    async def act(books: SqliteState) -> None:
        context: Context | None = await books.book.get(T, REPO)
        assert context is not None
        key = target_of(context, description.signature).key
        fill = Fill(key=key, state=FillState.READY, tokens=(1, 2), stored_tokens=2, filled_at_s=1.0, fill_seconds=1.0)
        assert await books.book.put_fill(fill)

    cli.state(act)


def test_who_did_not_ask_is_told_how_to(cli: Cli, folder: Path, description: Description) -> None:
    add(cli, folder)
    assert cli.json("foresee", "repo")["why_not"] == "it waits for the first start of an engine"
    cli.state(lambda books: books.engines.put("local", note_of(description)))
    view = cli.json("foresee", "repo")
    assert "--foresee" in view["why_not"]
    assert "How does it all begin?" in {one["question"] for one in view["questions"]}, "what would be foreseen"
    assert "--foresee" in cli.refused("foresee", "repo", "--now")


def test_questions_are_listed_and_asked_for(cli: Cli, folder: Path, description: Description) -> None:
    add(cli, folder, "--answers", "exact", "--foresee")
    cli.state(lambda books: books.engines.put("local", note_of(description)))
    assert "to be filled" in cli.json("foresee", "repo")["why_not"]
    filled(cli, description)
    view = cli.json("foresee", "repo", "--now")
    assert view["why_not"] == ""
    (asked,) = [one for one in view["questions"] if one["origin"] == "log"]
    assert (asked["question"], asked["prepared"]) == ("How does it all begin?", False)
    (job,) = [job for job in cli.state(lambda books: books.jobs.jobs()) if job.kind is JobKind.PREDICT]
    assert (job.id, job.priority, job.label) == (view["job"], ASKED, "repo")
    assert [one["origin"] for one in view["counts"]] == ["log", "structure", "model"]
    shown = cli.ok("foresee", "repo")
    assert "How does it all begin?" in shown
    assert "NEVER USED" in shown


def test_a_context_that_is_not_there_is_refused(cli: Cli) -> None:
    assert "no context 'nothing'" in cli.refused("foresee", "nothing")
