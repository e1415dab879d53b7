from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.engine import FakeEngine
from fakes.house import House
from fakes.keeper import AWAKE, FakeKeeper
from nightfill.config import Duration, GatewaySettings
from nightfill.engines.lifecycle.model import Event
from nightfill.engines.lifecycle.state import ModelState
from nightfill.gateway.model_views import Transitions

if TYPE_CHECKING:
    import aiohttp


@pytest.fixture
def keeper() -> FakeKeeper:
    return FakeKeeper()


@pytest.fixture
def house(keeper: FakeKeeper) -> House:
    return House(engine=FakeEngine(name="fake"), others=[FakeEngine(name="plain")], keeper=keeper)


async def call(
    client: aiohttp.ClientSession, method: str, path: str, body: object = None, key: str = ""
) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    data = msgspec.json.encode(body) if body is not None else b""
    async with client.request(method, f"/v1/nightfill/engines{path}", data=data, headers=headers) as reply:
        return reply.status, await reply.json()


async def test_engines_say_how_their_models_sleep(house: House) -> None:
    async with house.client() as client:
        _, found = await call(client, "GET", "")
    rows = {row["name"]: row for row in found["data"]}
    assert rows["plain"]["lifecycle"] is None
    assert rows["fake"]["lifecycle"] == {
        "name": "fake",
        "state": "awake",
        "since": 1.0,
        "device": "gpu",
        "bytes": 3 << 20,
        "host_bytes": 0,
        "awake_bytes": 3 << 20,
        "in_flight": 1,
        "waiting": 2,
        "pinned": False,
        "expected_until": None,
        "wakes": 1,
        "failures": 0,
        "last_wake": {
            "at_s": 1.0,
            "seconds": {"load": 0.25, "warm": 0.05},
            "waited_s": 0.5,
            "released": 2,
            "fresh": True,
        },
        "error": "",
    }


async def test_an_adapter_sleeps_with_its_model(house: House) -> None:
    house.others = [FakeEngine(name="fake:lora"), FakeEngine(name="faker")]
    async with house.client() as client:
        _, found = await call(client, "GET", "")
        assert (await call(client, "POST", "/fake:lora/sleep"))[1]["name"] == "fake"
    sleeps = {row["name"]: row["lifecycle"] and row["lifecycle"]["name"] for row in found["data"]}
    assert sleeps == {"fake": "fake", "fake:lora": "fake", "faker": None}


async def test_models_are_put_to_sleep_woken_and_pinned_by_hand(house: House, keeper: FakeKeeper) -> None:
    async with house.client() as client:
        assert (await call(client, "POST", "/fake/sleep"))[1]["state"] == "asleep_1"
        assert (await call(client, "POST", "/fake/sleep", {"level": 2}))[1]["state"] == "asleep_2"
        assert (await call(client, "POST", "/fake/wake"))[1]["state"] == "awake"
        assert (await call(client, "POST", "/fake/pin"))[1]["pinned"] is True
        assert (await call(client, "POST", "/fake/unpin"))[1]["pinned"] is False
    assert keeper.told == [
        ("sleep", "fake", None), ("sleep", "fake", 2), ("wake", "fake"), ("pin", "fake", True), ("pin", "fake", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/nobody/sleep", None, 404, "there is no engine 'nobody'"),
        ("POST", "/plain/sleep", None, 400, "engine 'plain' is always awake: it has no device"),
        ("POST", "/fake/sleep", {"level": 3}, 400, "level"),
        ("POST", "/fake/sleep", {"deep": True}, 400, "deep"),
        ("GET", "/fake/sleep", None, 405, "not allowed"),
        ("POST", "/fake/snore", None, 404, "there is no"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    house: House, keeper: FakeKeeper, method: str, path: str, body: object, status: int, message: str
) -> None:
    async with house.client() as client:
        found, answer = await call(client, method, path, body)
    assert (found, message in answer["error"]["message"]) == (status, True), answer
    assert keeper.told == []


async def test_a_model_that_does_not_fall_asleep_is_told_as_an_error(house: House, keeper: FakeKeeper) -> None:
    keeper.stuck = True
    async with house.client() as client:
        status, answer = await call(client, "POST", "/fake/sleep")
    assert (status, answer["error"]["message"]) == (504, "engine fake: is still in use")


async def test_of_several_tenants_the_operator_alone_moves_models(house: House, keeper: FakeKeeper) -> None:
    house.settings = GatewaySettings(port=0, drain_s=Duration(5), api_keys={"default": "ours", "acme": "theirs"})
    async with house.client() as client:
        status, answer = await call(client, "POST", "/fake/sleep", key="theirs")
        assert (status, "takes the API key of tenant default" in answer["error"]["message"]) == (403, True)
        assert (await call(client, "POST", "/fake/sleep", key=""))[0] == 401
        assert keeper.told == []
        assert (await call(client, "GET", "", key="theirs"))[0] == 200
        assert (await call(client, "POST", "/fake/sleep", key="ours"))[0] == 200


async def test_the_only_tenant_is_the_operator(house: House) -> None:
    house.settings = GatewaySettings(port=0, drain_s=Duration(5), api_keys={"acme": "theirs"})
    async with house.client() as client:
        assert (await call(client, "POST", "/fake/sleep", key="theirs"))[0] == 200


def test_transitions_are_lines_of_the_log_and_add_up_as_metrics(caplog: pytest.LogCaptureFixture) -> None:
    transitions = Transitions()
    woke = Event(
        at_s=1.0,
        model="fake",
        before=ModelState.WARMING,
        after=ModelState.AWAKE,
        reason="2 requests wait",
        seconds={"load": 0.25, "warm": 0.05},
    )
    with caplog.at_level(logging.INFO):
        transitions(woke)
        transitions(woke)
        transitions(replace(woke, before=ModelState.STARTING, after=ModelState.FAILED, reason="no file", seconds={}))
    assert caplog.messages[1:] == [
        "model fake: warming -> awake: 2 requests wait (load 0.250 s, warm 0.050 s)",
        "model fake: starting -> failed: no file",
    ]
    assert caplog.records[-1].levelno == logging.WARNING
    samples = {(one.name, *one.labels.values()): one.value for one in transitions.samples([AWAKE])}
    assert samples["model_wake_seconds_total", "fake", "load"] == 0.5
    assert samples["model_state", "fake", "awake"] == 1
    assert samples["model_state", "fake", "asleep_1"] == 0
    assert samples["model_bytes", "fake"] == 3 << 20
    assert samples["model_wake_queue", "fake"] == 2
    assert samples["model_wakes_total", "fake"] == 1
