from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.fill_engine import FakeFillEngine
from fakes.virtual_time import virtual
from nightfill.errors import EngineStart, EngineUnavailable
from nightfill.sleep.pool import EnginePool

if TYPE_CHECKING:
    from nightfill.engines.engine import Engine


class Factory:
    def __init__(self) -> None:
        self.made: list[FakeFillEngine] = []
        self.fails = False

    async def __call__(self) -> FakeFillEngine:
        if self.fails:
            raise EngineStart("no such file", engine="e")
        self.made.append(FakeFillEngine())
        return self.made[-1]


def pool_of(factory: Factory, at_s: list[float]) -> EnginePool:
    return EnginePool({"e": factory}, idle_stop_s={"e": 60.0}, clock=lambda: at_s[0])


async def fail_with_it(pool: EnginePool, *, dead: bool) -> None:
    async with pool.lent("e") as engine:
        assert isinstance(engine, FakeFillEngine)
        engine.dead = dead
        raise EngineUnavailable("x", engine="e")


@virtual
async def test_an_engine_starts_when_lent_and_serves_all_who_ask() -> None:
    factory = Factory()
    pool = pool_of(factory, [0.0])
    assert (pool.names, pool.running) == (("e",), ())
    async with pool.lent("e") as one, pool.lent("e") as two:
        assert one is two
    assert pool.running == ("e",)
    await pool.aclose()
    await pool.aclose()
    assert factory.made[0].closed


@virtual
async def test_an_idle_engine_ends_but_never_one_in_use() -> None:
    factory, at_s = Factory(), [0.0]
    pool = pool_of(factory, at_s)
    async with pool.lent("e"):
        at_s[0] = 1000.0
        await pool.stop_idle()
        assert pool.running == ("e",)
    at_s[0] = 1059.0
    await pool.stop_idle()
    assert pool.running == ("e",)
    at_s[0] = 1060.0
    await pool.stop_idle()
    assert not pool.running
    assert factory.made[0].closed


@virtual
async def test_an_engine_that_failed_is_replaced_if_it_does_not_answer() -> None:
    factory = Factory()
    pool = pool_of(factory, [0.0])
    for dead in (False, True):
        with pytest.raises(EngineUnavailable):
            await fail_with_it(pool, dead=dead)
    assert len(factory.made) == 1
    async with pool.lent("e") as engine:
        assert engine is factory.made[1]
    assert factory.made[0].closed
    await pool.aclose()


@virtual
async def test_a_start_that_fails_leaves_nothing_and_is_tried_again() -> None:
    factory = Factory()
    pool = pool_of(factory, [0.0])
    factory.fails = True
    with pytest.raises(EngineStart):
        async with pool.lent("e"):
            pass
    assert not pool.running
    factory.fails = False
    async with pool.lent("e"):
        assert pool.running == ("e",)
    await pool.aclose()


@virtual
async def test_a_view_of_an_engine_shares_it_and_does_not_outlive_it() -> None:
    factory, at_s, seen = Factory(), [0.0], []

    def view(engine: Engine) -> Engine:
        seen.append(engine)
        return FakeFillEngine()

    pool = EnginePool({"e": factory}, idle_stop_s={"e": 60.0}, views={"e:a": ("e", view)}, clock=lambda: at_s[0])
    assert pool.names == ("e", "e:a")
    async with pool.lent("e") as base, pool.lent("e:a") as viewed:
        assert viewed is not base
        assert seen == [base]
        at_s[0] = 1000.0
        await pool.stop_idle()
        assert not factory.made[0].closed
    at_s[0] = 2000.0
    await pool.stop_idle()
    assert (len(factory.made), factory.made[0].closed, pool.running) == (1, True, ())


@virtual
async def test_an_engine_may_be_lent_as_a_view_of_itself_that_is_made_each_time() -> None:
    factory, views = Factory(), [FakeFillEngine(), FakeFillEngine()]
    made = list(views)
    pool = EnginePool({"e": factory}, idle_stop_s={"e": 60.0}, views={"e": ("e", lambda _: made.pop(0))})
    assert pool.names == ("e",)
    for view in views:
        async with pool.lent("e") as lent:
            assert lent is view
    assert len(factory.made) == 1
    await pool.aclose()
    assert factory.made[0].closed


@virtual
async def test_engines_of_somebody_else_are_never_ended() -> None:
    at_s, factory = [0.0], Factory()
    pool = EnginePool({"e": factory}, idle_stop_s={"e": 60.0}, owns=False, clock=lambda: at_s[0])
    async with pool.lent("e"):
        pass
    at_s[0] = 100.0
    await pool.stop_idle()
    async with pool.lent("e"):
        pass
    await pool.aclose()
    assert [engine.closed for engine in factory.made] == [False, False]
