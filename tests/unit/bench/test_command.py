"""`nightfill bench` as it is typed, against a server on a real socket."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from nightfill.cli.bench import bench
from nightfill.errors import BadInput, BadSetting, EngineRefused, EngineUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from unit.bench.conftest import Answer, OpenAiServer, Pieces


async def run(*arguments: str, **env: str) -> Result:
    # in a thread: the command runs an event loop of its own, and the server needs this one
    return await asyncio.to_thread(CliRunner().invoke, bench, arguments, env=env)


async def test_a_run_asks_cold_first_and_ends_with_one_line_of_json(server: OpenAiServer) -> None:
    result = await run("--url", server.url, "--context", "repo", "--queries", "8", "--cold-queries", "3", "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    record = json.loads(line)
    assert (record["cold"]["queries"], record["filled"]["queries"], record["failed"]) == (3, 8, 0)
    assert record["filled"]["cached_tokens_mean"] == 990
    assert (record["model"], record["context"], record["load"]) == ("tiny", "repo", "closed loop, 1 at a time")
    assert ["skip" in asked["nightfill"] for asked in server.asked] == [True] * 3 + [False] * 8
    assert {asked["max_tokens"] for asked in server.asked} == {8}


async def test_a_run_without_json_ends_with_a_table(server: OpenAiServer) -> None:
    result = await run("--url", server.url, "--context", "repo", "--queries", "2")
    assert result.exit_code == 0, result.output
    assert "Time to first token" in result.stdout
    assert "little more than their maximum" in result.stdout


async def test_any_server_can_be_measured_with_a_text_sent_whole(server: OpenAiServer, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A long text.", encoding="utf-8")
    result = await run(
        "--url", server.url, "--prompt-file", str(text), "--queries", "2", "--rate", "1000", "--json"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    prompts = [asked["messages"][0]["content"] for asked in server.asked]
    assert [prompt.startswith("A long text.") for prompt in prompts] == [False, False, True, True, True]
    record = json.loads(result.stdout)
    assert record["filled"]["queries"] == 2  # the one that warms the server's cache is not counted
    assert record["load"].startswith("open loop, Poisson, 1000 a second")


async def test_a_failed_query_makes_the_command_fail_and_is_counted(server: OpenAiServer, pieces: type[Pieces]) -> None:
    def every_other(_: dict[str, Any]) -> Answer:
        return pieces.whole() if len(server.asked) % 2 else pieces.of(b"{}", status=500)

    server.answer = every_other
    result = await run("--url", server.url, "--context", "repo", "--queries", "6", "--cold-queries", "0", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failed"] == 3
    assert "3 of 6 queries failed" in result.stderr


async def test_a_context_that_is_not_ready_is_measured_but_said(server: OpenAiServer, pieces: type[Pieces]) -> None:
    server.context = pieces.context(state="filling", stored_tokens=256)
    result = await run("--url", server.url, "--context", "repo", "--queries", "20", "--cold-queries", "0", "--json")
    (note,) = json.loads(result.stdout)["notes"]
    assert note.endswith("its fill was filling, 256 of 990 tokens")


async def test_a_context_that_nobody_knows_ends_the_run_before_it_begins(
    server: OpenAiServer, pieces: type[Pieces]
) -> None:
    server.context = pieces.of(b'{"error": {"message": "there is no context"}}', status=404)
    result = await run("--url", server.url, "--context", "repo")
    assert isinstance(result.exception, EngineRefused)
    assert "there is no context" in str(result.exception)
    assert not server.asked


async def test_prices_add_what_a_query_costs(server: OpenAiServer) -> None:
    arguments = (
        "--url", server.url, "--context", "repo", "--queries", "2", "--json",
        "--serving-per-hour", "2.57", "--background-per-hour", "1.66",
    )  # fmt: skip
    record = json.loads((await run(*arguments, "--background-seconds", "60")).stdout)
    assert record["filled_cost"]["background_per_query"] == pytest.approx(60 * 1.66 / 3600 / 2)
    record = json.loads((await run(*arguments)).stdout)
    assert record["filled_cost"]["background_per_query"] == pytest.approx(30 * 1.66 / 3600 / 2)  # the server's word
    assert record["cold_cost"]["background_per_query"] == 0


async def test_a_chart_is_drawn_where_it_was_asked_for(server: OpenAiServer, tmp_path: Path) -> None:
    chart = tmp_path / "ttft.png"
    result = await run("--url", server.url, "--context", "repo", "--queries", "2", "--chart", str(chart))
    assert result.exit_code == 0, result.output
    assert chart.read_bytes().startswith(b"\x89PNG")


async def test_the_key_comes_from_the_environment_and_is_not_printed(server: OpenAiServer) -> None:
    arguments = ("--url", server.url, "--context", "repo", "--queries", "1", "--api-key-env", "SOME_KEY", "--json")
    result = await run(*arguments, SOME_KEY="s3cret")
    assert set(server.keys) == {"bearer s3cret"}
    assert "s3cret" not in result.output
    assert isinstance((await run(*arguments, SOME_KEY="")).exception, BadSetting)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--context", "repo", "--prompt-file", "x"),
        ("--context", "repo", "--rate", "3", "--concurrency", "2"),
        ("--context", "repo", "--queries", "0"),
        ("--context", "repo", "--background-seconds", "3"),
    ],
)
async def test_options_that_make_no_sense_together_are_refused(
    server: OpenAiServer, arguments: tuple[str, ...]
) -> None:
    result = await run("--url", server.url, *arguments)
    assert result.exit_code == 2
    assert not server.asked


@pytest.mark.parametrize(
    ("url", "message"), [("ftp://x", "not an address"), ("8700", "not an address"), ("http://u:p@x", "credentials")]
)
async def test_an_address_that_cannot_be_used_is_refused(url: str, message: str) -> None:
    result = await run("--url", url, "--context", "repo")
    assert isinstance(result.exception, BadSetting)
    assert message in str(result.exception)


@pytest.mark.parametrize("content", [b"", b"\xff\xff"])
async def test_a_prompt_file_without_text_is_refused(server: OpenAiServer, tmp_path: Path, content: bytes) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    assert isinstance((await run("--url", server.url, "--prompt-file", str(text))).exception, BadInput)


async def test_a_server_that_is_not_there_ends_the_run_at_once(unused_address: str) -> None:
    result = await run("--url", unused_address, "--context", "repo")
    assert isinstance(result.exception, EngineUnavailable)
