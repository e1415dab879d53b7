from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nightfill.state.jobs import Job, JobKind, WorkerId

if TYPE_CHECKING:
    from fakes.cli import Cli
    from nightfill.state.sqlite import SqliteState


async def enqueue(books: SqliteState) -> Job:
    return await books.jobs.enqueue(
        kind=JobKind.FILL, target="t/f/chat/s", tenant="t", label="repo", priority=1.0, total_tokens=100
    )


async def kill(books: SqliteState) -> None:
    lease = await books.jobs.lease(WorkerId("w"), kinds=[JobKind.FILL], lease_s=60)
    assert lease is not None
    await books.jobs.fail(lease, error="disk full", retry_in_s=None)


def test_jobs_are_listed_shown_and_cancelled(cli: Cli) -> None:
    cli.data.mkdir()
    assert "no jobs wait or run" in cli.ok("jobs", "ls")
    cli.state(enqueue)
    table = cli.ok("jobs", "ls")
    assert "repo" in table
    assert "0/100" in table
    assert "queued" in cli.ok("jobs", "show", "1")
    assert cli.json("jobs", "show", "1")["context"] == "repo"
    assert cli.ok("jobs", "cancel", "1") == "job 1 (repo) is cancelled\n"
    assert cli.json("jobs", "ls") == []
    assert [job["state"] for job in cli.json("jobs", "ls", "--all")] == ["cancelled"]


def test_a_dead_job_is_retried(cli: Cli) -> None:
    cli.data.mkdir()
    cli.state(enqueue)
    cli.state(kill)
    assert "disk full" in cli.ok("jobs", "ls")
    assert cli.json("jobs", "retry", "1")["state"] == "queued"


def test_what_does_not_fit_the_jobs_state_is_refused(cli: Cli) -> None:
    cli.data.mkdir()
    cli.state(enqueue)
    assert "job 1 is queued: only dead jobs can be retried" in cli.refused("jobs", "retry", "1")
    cli.ok("jobs", "cancel", "1")
    assert "job 1 is cancelled: only jobs that wait or run" in cli.refused("jobs", "cancel", "1")


@pytest.mark.parametrize("verb", ["show", "retry", "cancel"])
def test_an_unknown_job_is_named(cli: Cli, verb: str) -> None:
    assert "no job 7" in cli.refused("jobs", verb, "7")
    assert "not a valid integer" in cli.refused("jobs", verb, "x")
