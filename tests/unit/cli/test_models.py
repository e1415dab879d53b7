from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fakes.engine import FakeEngine
from fakes.house import House
from fakes.keeper import FakeKeeper
from nightfill.config import Duration, GatewaySettings

if TYPE_CHECKING:
    from fakes.cli import Cli


@pytest.fixture
def house() -> House:
    return House(engine=FakeEngine(name="fake"), others=[FakeEngine(name="plain")], keeper=FakeKeeper())


async def test_models_are_shown_and_moved(cli: Cli, house: House) -> None:
    async with house.client() as client:
        url = ("--url", str(client._base_url))
        table = await asyncio.to_thread(cli.ok, "models", *url)
        rows = [line.split() for line in table.splitlines()]
        assert rows[1][:3] == ["fake", "demo", "awake"]
        assert "3.0 MiB" in table
        assert rows[2][:4] == ["plain", "demo", "always", "awake"]
        assert await asyncio.to_thread(cli.ok, "models", "sleep", "fake", "--level", "2", *url) == "fake is asleep_2\n"
        assert await asyncio.to_thread(cli.ok, "models", "wake", "fake", *url) == "fake is awake\n"
        assert await asyncio.to_thread(cli.ok, "models", "pin", "fake", *url) == "fake is awake, pinned\n"
        assert (await asyncio.to_thread(cli.json, "models", "unpin", "fake", *url))["pinned"] is False
        listed = await asyncio.to_thread(cli.json, "models", "ls", *url)
        assert [row["name"] for row in listed] == ["fake", "plain"]
        assert "there is no engine 'x'" in await asyncio.to_thread(cli.refused, "models", "sleep", "x", *url)


async def test_the_key_in_the_settings_is_for_their_own_address_alone(cli: Cli, house: House) -> None:
    house.settings = GatewaySettings(port=0, drain_s=Duration(5), api_keys={"default": "ours"})
    async with house.open() as server:
        config = cli.folder / "settings.yaml"
        config.write_text(f'{{"gateway": {{"port": {server.port}, "api_keys": {{"default": "ours"}}}}}}')
        given = ("--config", config, "models", "wake", "fake")
        assert await asyncio.to_thread(cli.ok, *given) == "fake is awake\n"
        refused = await asyncio.to_thread(lambda: cli.refused(*given, "--url", server.url, status=1))
        assert "missing or wrong API key" in refused


def test_no_server_is_told(cli: Cli) -> None:
    assert "is it running?" in cli.refused("models", "--url", "http://127.0.0.1:9", status=1)
