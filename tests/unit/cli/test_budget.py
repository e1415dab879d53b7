from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nightfill.sleep.description import note_of
from nightfill.state.budgets import Period, Scope

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.cli import Cli
    from nightfill.engines.engine import Description


def day(rows: list[dict[str, Any]], tenant: str | None = None, user: str | None = None) -> dict[str, Any]:
    (row,) = (row for row in rows if (row["tenant"], row["user"], row["period"]) == (tenant, user, "day"))
    return row


def test_without_work_there_is_the_budget_of_all_without_a_bound(cli: Cli) -> None:
    assert [(row["tenant"], row["period"], row["limit"], row["left"]) for row in cli.json("budget")] == [
        (None, "day", None, None),
        (None, "month", None, None),
    ]
    assert "no bound" in cli.ok("budget")


def test_a_limit_is_set_shown_and_taken_back(cli: Cli) -> None:
    [set_day, set_month] = cli.json("budget", "set", "user:default/ann", "--day", "2_000", "--month", "9000")
    assert (set_day["limit"], set_day["own"], set_day["left"]) == (2000, True, 2000)
    assert (set_month["limit"], set_month["own"]) == (9000, True)
    shown = cli.ok("budget")
    assert "user ann of default" in shown
    assert "2,000*" in shown
    assert day(cli.json("budget"), "default", "ann")["limit"] == 2000
    cli.ok("budget", "set", "user:default/ann", "--month", "9500")
    assert day(cli.json("budget", "show", "user:default/ann"), "default", "ann")["limit"] == 2000, "only the month"
    rows = cli.json("budget", "set", "user:default/ann", "--default")
    assert [(row["limit"], row["own"]) for row in rows] == [(500_000, False), (None, False)]


@pytest.mark.parametrize(
    ("scope", "wanted"),
    [("all", Scope()), ("tenant:acme", Scope("acme")), ("user:acme/ann", Scope("acme", "ann"))],
)
def test_each_kind_of_scope_can_be_given_a_limit_that_holds_for_all_processes(
    cli: Cli, scope: str, wanted: Scope
) -> None:
    cli.ok("budget", "set", scope, "--day", "0")
    lines = cli.state(lambda state: state.budgets.lines([wanted]))
    assert [line.limit for line in lines if line.period is Period.DAY] == [0]


@pytest.mark.parametrize("scope", ["ann", "tenant:", "tenant:a/b", "user:ann", "user:a/", "user:a/B", "all:x", ""])
def test_other_scopes_are_refused(cli: Cli, scope: str) -> None:
    cli.refused("budget", "set", scope, "--day", "1")
    assert cli.json("budget", "show", "all")[0]["own"] is False


@pytest.mark.parametrize("options", [(), ("--day", "1", "--default"), ("--day", "-1"), ("--month", "much")])
def test_limits_that_make_no_sense_are_refused(cli: Cli, options: tuple[str, ...]) -> None:
    cli.refused("budget", "set", "all", *options)


def test_a_fill_that_is_asked_for_is_refused_when_the_budget_is_spent(
    cli: Cli, folder: Path, description: Description
) -> None:
    cli.state(lambda books: books.engines.put("local", note_of(description)))
    made = cli.json("context", "add", "repo", folder, "--user", "ann")
    assert made["user"] == "ann"
    cli.ok("budget", "set", "user:default/ann", "--day", "3")
    error = cli.refused("context", "fill", "repo", status=1)
    assert "user ann of default" in error
    assert "nightfill budget" in error
    (line,) = cli.json("plan")
    assert (line["verdict"], line["why"].split(":")[0]) == ("skip", "waits for budget")
    assert (line["user"], line["missing_tokens"] > 3) == ("ann", True)
    assert cli.json("jobs", "ls") == []
    cli.ok("budget", "set", "user:default/ann", "--day", "3000")
    [job] = cli.json("context", "fill", "repo")["jobs"]
    assert (job["user"], job["reserved_tokens"] > 3) == ("ann", True)
    assert day(cli.json("budget"), "default", "ann")["reserved"] == job["reserved_tokens"]


def test_the_settings_say_what_holds_where_nothing_was_set(cli: Cli) -> None:
    settings = cli.folder / "settings.yaml"
    settings.write_text("budgets: {all_tokens_per_month: 7, user_tokens_per_day: 0}\n")
    rows = cli.json("--config", settings, "budget", "show", "all", "user:default/ann")
    assert [row["limit"] for row in rows] == [None, 7, None, None]
