from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.house import House
from nightfill.config import Duration, GatewaySettings
from nightfill.errors import StateUnavailable
from nightfill.sleep.autoscale import Scale

if TYPE_CHECKING:
    import aiohttp

SCALE = Scale(
    wished_workers=3,
    allowed=True,
    reason="window",
    why="window `0 2 * * *` is open",
    queue_depth=12,
    due=7,
    later=1,
    leased=4,
    tokens=90_000,
    tokens_per_s=250.0,
)
KEYED = GatewaySettings(port=0, drain_s=Duration(5), api_keys={"acme": "k" * 20})


async def scaled() -> Scale:
    return SCALE


async def down() -> Scale:
    raise StateUnavailable("the state is down")


async def metrics(client: aiohttp.ClientSession) -> dict[str, float]:
    async with client.get("/metrics") as reply:
        assert reply.status == 200
        lines = (line.rpartition(" ") for line in (await reply.text()).splitlines() if line[0] != "#")
        return {name.removeprefix("nightfill_"): float(value) for name, _, value in lines}


async def test_an_autoscaler_reads_how_many_workers_are_wished_for() -> None:
    house = House(autoscale=scaled)
    async with house.client() as client, client.get("/v1/nightfill/autoscale") as reply:
        assert (reply.status, await reply.json()) == (
            200,
            {
                "wished_workers": 3,
                "allowed": True,
                "reason": "window",
                "why": "window `0 2 * * *` is open",
                "queue_depth": 12,
                "due": 7,
                "later": 1,
                "leased": 4,
                "tokens": 90_000,
                "tokens_per_s": 250.0,
            },
        )


@pytest.mark.parametrize(("key", "status"), [("", 401), ("wrong", 401), ("k" * 20, 200)])
async def test_it_needs_a_key_as_all_of_our_routes_do(key: str, status: int) -> None:
    house = House(autoscale=scaled, settings=KEYED)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with house.client() as client, client.get("/v1/nightfill/autoscale", headers=headers) as reply:
        assert reply.status == status


async def test_a_state_that_is_down_is_said_and_nothing_is_made_up() -> None:
    house = House(autoscale=down)
    async with house.client() as client:
        async with client.get("/v1/nightfill/autoscale") as reply:
            assert reply.status == 503
        assert "wished_workers" not in await metrics(client)


async def test_prometheus_knows_the_same() -> None:
    house = House(autoscale=scaled)
    async with house.client() as client:
        found = await metrics(client)
    names = ("queue_due", "queue_later", "queue_leased", "queue_tokens", "wished_workers", "worker_tokens_per_second")
    assert [found[name] for name in names] == [7, 1, 4, 90_000, 3, 250]
    allowed = {name: value for name, value in found.items() if name.startswith("background_allowed")}
    assert sum(allowed.values()) == allowed['background_allowed{reason="window"}'] == 1
    assert len(allowed) == 5


async def test_where_nobody_says_there_is_no_such_route(house: House) -> None:
    async with house.client() as client, client.get("/v1/nightfill/autoscale") as reply:
        assert reply.status == 404
