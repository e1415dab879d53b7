from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from fakes.house import House, post
from nightfill.config import DiscoverySettings
from nightfill.contexts import DEFAULT_TENANT
from nightfill.gateway.discovery import Discovery
from nightfill.state.seal import NoSeal

if TYPE_CHECKING:
    from fakes.cli import Cli

RULES = "".join(f"Rule {number}: what is numbered {number * 7919} comes first.\n" for number in range(40))


@pytest.fixture
def house() -> House:
    house = House()
    house.discovery = Discovery(
        house.book,
        house.access,
        DiscoverySettings(enabled=True, min_tokens=256),
        max_context_bytes=1 << 20,
        tenants=1,
        seal=NoSeal(),
    )
    return house


async def test_what_a_server_found_is_shown_made_a_context_and_forgotten(cli: Cli, house: House) -> None:
    assert house.discovery is not None
    async with house.client() as client:
        url = str(client._base_url)
        empty = await asyncio.to_thread(cli.ok, "discovered", "--url", url)
        assert empty == "no prefix of 256 tokens has come twice yet\n"
        for question in ("one", "two", "three"):
            messages = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
            assert await post(client, "/v1/chat/completions", json={"model": "demo", "messages": messages}) == 200
        await house.discovery.settled()
        found = msgspec.json.decode(await asyncio.to_thread(cli.ok, "discovered", "--url", url, "--json"))
        name = found["kept"][0]["name"]
        table = await asyncio.to_thread(cli.ok, "discovered", "--url", url)
        assert f"nightfill discovered --register {name}" in table
        assert "REQUESTS" in table
        assert "Rule" not in table
        made = await asyncio.to_thread(cli.ok, "discovered", "--url", url, "--register", name)
        assert made == f"{name} is a context now\n"
        assert [context.name for context in await house.book.contexts()] == [name]
        assert name in await asyncio.to_thread(cli.ok, "discovered", "--url", url)
        refused = await asyncio.to_thread(cli.refused, "discovered", "--url", url, "--register", name)
        assert "no text is kept" in refused
        assert await asyncio.to_thread(cli.ok, "discovered", "--url", url, "--forget") == "forgotten\n"
        assert (await house.discovery.shown(DEFAULT_TENANT))["data"] == []


async def test_a_server_that_does_not_look_says_which_setting_is_off(cli: Cli) -> None:
    async with House().open() as server:
        refused = await asyncio.to_thread(cli.refused, "discovered", "--url", server.url)
    assert "`discovery.enabled` is off" in refused


def test_no_server_and_no_address_are_told(cli: Cli) -> None:
    assert "is it running?" in cli.refused("discovered", "--url", "http://127.0.0.1:1", status=1)
    assert "is not an address" in cli.refused("discovered", "--url", "127.0.0.1")
    refused = cli.refused("discovered", "--url", "http://me:secret@127.0.0.1:1")
    assert "is not an address" in refused
    assert "secret" not in refused
    assert "--forget" in cli.refused("discovered", "--register", "found-00000000", "--forget")
