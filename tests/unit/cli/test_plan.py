from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fakes.access import access
from nightfill.contexts.context import ContextName
from nightfill.sleep.description import note_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

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


def test_what_a_bounded_budget_is_kept_for_is_said(
    cli: Cli, description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.state(lambda books: books.engines.put("local", note_of(description)))
    for name in ("busy", "idle"):
        cli.ok("context", "add", name, "--text", "-", stdin=name + "x" * 2100)
    cli.state(lambda books: books.access.append([access(at_s=time.time(), context=ContextName("busy"))] * 5))
    cli.ok("budget", "set", "all", "--day", "1000")
    why = {line["context"]: line["why"] for line in cli.json("plan")}
    assert why["busy"].startswith("never filled")
    assert why["idle"].startswith("not filled now: until 00:00 UTC the budget of all is for what saves ")
    monkeypatch.setenv("NIGHTFILL_SLEEP__POLICY", "recency_frequency")
    assert {line["context"]: line["why"] for line in cli.json("plan")}["idle"].startswith("waits for budget")
