from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.sleep.description import note_of

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.cli import Cli
    from nightfill.engines.engine import Description


def test_a_plan_of_nothing_says_how_to_begin(cli: Cli) -> None:
    assert "nightfill context add" in cli.ok("plan")
    assert cli.json("plan") == []


def test_each_context_has_one_line_with_a_reason(cli: Cli, folder: Path, description: Description) -> None:
    cli.ok("context", "add", "repo", folder)
    assert "waits for the first start of an engine" in cli.ok("plan")
    cli.state(lambda books: books.engines.put("local", note_of(description)))
    (line,) = cli.json("plan")
    assert (line["context"], line["form"], line["verdict"]) == ("repo", "chat", "fill")
    assert "never filled" in line["why"]
    assert len(cli.ok("plan").splitlines()) == 2
    assert cli.json("plan", "--tenant", "other") == []
