"""Commands on a state that several hosts share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fakes.stores import redis_server
from nightfill.cli.rooms import open_board, open_rooms
from nightfill.cli.workspace import Workspace, answer_bounds
from nightfill.config import AnswerSettings, ByteSize, KvSettings, Settings, TierSettings
from nightfill.state.answers import AnswerBounds
from nightfill.state.board import MmapLoadBoard

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.cli import Cli


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> str:
    redis_server().call([b"FLUSHALL"])
    monkeypatch.setenv("NIGHTFILL_STATE", redis_server().url)
    return redis_server().url


def test_commands_find_on_the_server_what_another_host_put_there(cli: Cli, shared: str) -> None:
    text = cli.folder / "manual.txt"
    text.write_text("Read me first.")
    cli.ok("context", "add", "manual", str(text))
    assert not (cli.data / "state.db").exists()
    cli.data = cli.folder / "another"
    assert [context["name"] for context in cli.json("context", "ls")] == ["manual"]
    assert cli.json("jobs", "ls") == []
    cli.ok("budget", "set", "all", "--day", "1000")
    cli.ok("context", "rm", "manual")
    assert cli.json("context", "ls") == []


def test_a_server_that_is_away_is_named_without_its_password(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTFILL_STATE", "redis://user:hidden@127.0.0.1:1/0")
    told = cli("jobs", "ls")
    assert told.exit_code != 0
    assert "127.0.0.1:1/0: cannot connect" in told.stderr
    assert "hidden" not in told.output


@pytest.mark.parametrize("address", ["redis://user:hidden@:port/0", "mysql://user:hidden@host/db"])
def test_an_address_that_is_none_is_refused_without_showing_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("NIGHTFILL_STATE", address)
    told = cli("jobs", "ls")
    assert told.exit_code == 2
    assert "state: expected redis://" in told.stderr
    assert "hidden" not in told.output


async def test_only_engines_that_several_hosts_use_have_the_fleets_board(tmp_path: Path, shared: str) -> None:
    def workspace(name: str) -> Workspace:
        tiers = (TierSettings(kind="ram", max_bytes=ByteSize(1 << 20)),)
        settings = Settings(state=shared, data_dir=str(tmp_path / name), kv=KvSettings(tiers=tiers))
        return Workspace(settings=settings, data_dir=tmp_path / name)

    async with open_rooms(workspace("a")) as here, open_rooms(workspace("b")) as there:
        async with open_board(here, serves=True, shared_engines=False) as board:
            assert isinstance(board, MmapLoadBoard)
        async with (
            open_board(here, serves=True, shared_engines=True) as front,
            open_board(there, serves=False, shared_engines=True) as back,
            asyncio.timeout(10),
        ):
            front.enter()
            front.enter()
            while back.read().in_flight != 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.002)
            front.leave()
            front.leave()


def test_the_doctor_looks_into_a_state_on_a_server(cli: Cli, shared: str) -> None:
    assert "0 wait or run" in cli("doctor").stdout
    assert not (cli.data / "state.db").exists()


def test_what_the_state_keeps_of_answers_is_bounded_by_the_settings() -> None:
    settings = AnswerSettings(max_answers=3, max_bytes=ByteSize(400), tenant_max_answers=2, questions_per_context=7)
    assert answer_bounds(settings) == AnswerBounds(answers=3, bytes=400, tenant_answers=2, questions=7)
    assert answer_bounds(AnswerSettings()).tenant_answers is None
