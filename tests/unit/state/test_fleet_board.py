"""The load of all hosts, as one of them knows it."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest

from fakes.cutting_proxy import CuttingProxy
from fakes.stores import redis_server
from nightfill.errors import StateUnavailable
from nightfill.state.board import MmapLoadBoard
from nightfill.state.fleet_board import GONE_S, SILENT_S, FleetBoard, HostLoad, joined, others_load
from nightfill.state.load import NO_LOAD, Load
from nightfill.state.redis import RedisState, open_redis_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from nightfill.state.fleet_board import SharedLoads

NOW_S = 1000.0


def host(
    name: str = "b", *, in_flight: int = 0, idle_s: float = 5.0, ttft_s: float = 0.0, age_s: float = 0.1
) -> HostLoad:
    return HostLoad(host=name, in_flight=in_flight, idle_s=idle_s, ttft_s=ttft_s, age_s=age_s)


def test_the_load_of_others_is_summed_and_ones_own_left_out() -> None:
    hosts = [host("me", in_flight=9), host("b", in_flight=2, ttft_s=0.3), host("c", in_flight=1, ttft_s=0.2)]
    load = others_load(hosts, me="me", now_s=NOW_S)
    assert (load.in_flight, load.ttft_s) == (3, 0.2)


def test_idleness_is_told_by_ones_own_clock() -> None:
    load = others_load([host("b", idle_s=5.0, age_s=1.0), host("c", idle_s=2.0, age_s=0.5)], me="me", now_s=NOW_S)
    assert load.idle_since_s == NOW_S - 2.5
    assert others_load([], me="me", now_s=NOW_S).idle_since_s == -math.inf
    assert others_load([host(idle_s=math.inf)], me="me", now_s=NOW_S).idle_since_s == -math.inf


@pytest.mark.parametrize(("in_flight", "counts"), [(0, 1), (1, 1), (4, 4)])
def test_a_host_that_fell_silent_counts_as_busy(in_flight: int, counts: int) -> None:
    silent = host(in_flight=in_flight, age_s=SILENT_S + 0.1)
    assert others_load([silent], me="me", now_s=NOW_S).in_flight == counts


def test_two_loads_are_joined() -> None:
    here = Load(in_flight=1, idle_since_s=10.0, ttft_s=0.0)
    there = Load(in_flight=2, idle_since_s=12.0, ttft_s=0.4)
    assert joined(here, there) == Load(in_flight=3, idle_since_s=12.0, ttft_s=0.4)


@pytest.fixture
async def proxy() -> AsyncIterator[CuttingProxy]:
    redis_server().call([b"FLUSHALL"])
    async with CuttingProxy(path=redis_server().path) as made:
        yield made


@pytest.fixture
async def state(proxy: CuttingProxy) -> AsyncIterator[RedisState]:
    async with open_redis_state(proxy.url, timeout_s=0.3) as opened:
        yield opened


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not met():  # noqa: ASYNC110 - another host's change comes when it comes
            await asyncio.sleep(0.002)


async def test_a_request_at_one_host_closes_the_gate_of_another(state: RedisState, tmp_path: Path) -> None:
    gateway, worker = MmapLoadBoard(tmp_path / "a"), MmapLoadBoard(tmp_path / "b", writes=False)
    async with (
        FleetBoard(gateway, state.loads, me="a", publishes=True) as front,
        FleetBoard(worker, state.loads, me="b", publishes=False) as back,
    ):
        await until(lambda: back.read().in_flight == 0)
        front.enter()
        front.enter()
        assert front.read().in_flight >= 2, "its own are counted at once"
        await until(lambda: back.read().in_flight == 2)
        front.note_ttft(0.25)
        front.leave()
        front.leave()
        await until(lambda: back.read().in_flight == 0)
        load = back.read()
        assert load.ttft_s == 0.25
        loop = asyncio.get_running_loop()
        assert 0 <= loop.time() - load.idle_since_s < 5
    assert await state.loads.read(gone_s=GONE_S) == [], "it said goodbye"
    gateway.close()
    worker.close()


async def test_a_hosts_own_requests_are_not_counted_twice_by_its_worker(state: RedisState, tmp_path: Path) -> None:
    gateway, worker = MmapLoadBoard(tmp_path / "board"), MmapLoadBoard(tmp_path / "board", writes=False)
    async with (
        FleetBoard(gateway, state.loads, me="a", publishes=True) as front,
        FleetBoard(worker, state.loads, me="a", publishes=False) as back,
    ):
        front.enter()
        async with asyncio.timeout(10):
            while not await published(state.loads, in_flight=1):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.002)
        await until(lambda: back.read().in_flight == 1)
        front.leave()
    gateway.close()
    worker.close()


async def published(loads: SharedLoads, *, in_flight: int) -> bool:
    return [one.in_flight for one in await loads.read(gone_s=GONE_S)] == [in_flight]


async def test_while_the_state_is_away_the_fleet_counts_as_busy(proxy: CuttingProxy, state: RedisState) -> None:
    late_s = 0.0
    loop = asyncio.get_running_loop()
    board = FleetBoard(NO_LOAD, state.loads, me="b", publishes=False, clock=lambda: loop.time() + late_s)
    assert board.read().in_flight == 1, "nothing is known yet"
    async with board:
        await until(lambda: board.read().in_flight == 0)
        proxy.cut(refuse=True)
        await refused(state.loads)
        late_s = SILENT_S + 1
        assert board.read().in_flight == 1
        proxy.heal()
        await until(lambda: board.read().in_flight == 0)


async def refused(loads: SharedLoads) -> None:
    with pytest.raises(StateUnavailable):
        await loads.read(gone_s=GONE_S)


async def test_a_host_that_is_gone_is_forgotten(state: RedisState) -> None:
    await state.loads.publish("a", Load(in_flight=3, idle_since_s=0.0, ttft_s=0.0), idle_s=1.5)
    (said,) = await state.loads.read(gone_s=GONE_S)
    assert (said.host, said.in_flight, said.idle_s) == ("a", 3, 1.5)
    assert said.age_s < GONE_S
    assert await state.loads.read(gone_s=-1.0) == []
    assert await state.loads.read(gone_s=GONE_S) == []


async def test_a_goodbye_that_nobody_hears_ends_all_the_same(
    proxy: CuttingProxy, state: RedisState, tmp_path: Path
) -> None:
    local = MmapLoadBoard(tmp_path / "a")
    async with FleetBoard(local, state.loads, me="a", publishes=True):
        proxy.cut(refuse=True)
    local.close()
