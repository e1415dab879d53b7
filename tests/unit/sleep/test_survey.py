"""What a bounded budget is spent on, over a real state file in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest

from fakes.access import access
from fakes.background import SETTINGS, T, house
from fakes.fill_engine import FakeFillEngine
from fakes.virtual_time import virtual
from nightfill.config import PriceSettings
from nightfill.contexts.context import ContextName, Form
from nightfill.errors import StateUnavailable
from nightfill.sleep import survey as survey_module
from nightfill.sleep.bill import Bill
from nightfill.sleep.plan import PlanLine, Verdict
from nightfill.sleep.planner import Planner, plan_lines
from nightfill.sleep.survey import UNKNOWN, Survey, price_of
from nightfill.sleep.worth import Case
from nightfill.state.access import Usage
from nightfill.state.budgets import BudgetLine, Period, Scope
from nightfill.state.jobs import JobState

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.background import House

HOUR_S = 3600.0
DAY_S = 86400.0


class Night:
    """Plans a house, by a survey or without one."""

    def __init__(self, h: House, *, surveyed: bool = True) -> None:
        self.h = h
        self.bill = Bill(h.state, prices=PriceSettings(), stop_after_s=0.0)
        survey = Survey(h.state) if surveyed else None
        self.planner = Planner(h.state, clock=h.wall, default_ttl_s=4 * HOUR_S, bill=self.bill, survey=survey)

    async def tick(self) -> dict[str, PlanLine]:
        return {line.context: line for line in await self.planner.tick([await FakeFillEngine().describe()])}

    async def shown(self) -> dict[str, PlanLine]:
        lines = await plan_lines(
            self.h.state,
            [await FakeFillEngine().describe()],
            now_s=self.h.wall(),
            default_ttl_s=4 * HOUR_S,
            bill=self.bill,
            priced=True,
        )
        return {line.context: line for line in lines}

    async def until(self, hour: float) -> None:
        """Wait until it is this hour, UTC."""
        await asyncio.sleep((hour * HOUR_S - self.h.wall()) % DAY_S or DAY_S)


async def queued(h: House) -> set[str]:
    return {job.label for job in await h.state.jobs.jobs(states=[JobState.QUEUED])}


async def a_week(h: House, night: Night) -> None:
    """`morning` is used 20 times at eight o'clock, `dull` once at noon; ends at midnight."""
    for name in ("morning", "dull"):
        await h.put(name + "x" * 2990, name=name)
    for _ in range(7):
        for name, hour, uses in (("morning", 8, 20), ("dull", 12, 1), ("morning", 0, 0)):
            await night.until(hour + 0.01)
            await h.state.access.append([access(at_s=h.wall(), context=ContextName(name)) for _ in range(uses)])


@virtual
async def test_a_budget_is_kept_for_what_will_be_worth_more_later(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        night = Night(h)
        await a_week(h, night)
        await h.state.budgets.set_limit(Scope(), Period.DAY, 1500)
        for hour in (0.1, 6.1):
            await night.until(hour)
            shown, found = await night.shown(), await night.tick()
            if hour < 1:
                assert shown["dull"].verdict is found["dull"].verdict is Verdict.SKIP
                assert "until 00:00 UTC the budget of all is for what saves" in found["dull"].why
                assert shown["dull"].why == found["dull"].why
                assert await queued(h) == set()
        assert await queued(h) == {"morning"}


@virtual
async def test_without_a_look_ahead_it_is_spent_on_what_comes_first(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        night = Night(h, surveyed=False)
        await a_week(h, night)
        await h.state.budgets.set_limit(Scope(), Period.DAY, 1500)
        await night.until(9.1)
        await h.state.access.append([access(at_s=h.wall(), context=ContextName("dull"))])
        await night.tick()
        assert "dull" in await queued(h)


@virtual
async def test_where_the_budget_is_enough_for_all_or_there_is_none_nothing_is_held_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        night = Night(h)
        for n in range(3):
            await h.put(f"{n}" + "x" * 2990, name=f"c{n}")
        assert {line.verdict for line in (await night.shown()).values()} == {Verdict.FILL}
        await h.state.budgets.set_limit(Scope(), Period.DAY, 3100)
        assert {line.verdict for line in (await night.tick()).values()} == {Verdict.FILL}


@virtual
async def test_what_is_pinned_is_filled_at_any_price(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        night = Night(h)
        await a_week(h, night)
        await h.state.budgets.set_limit(Scope(), Period.DAY, 1500)
        await h.put("dull" + "x" * 2990, name="dull", pinned=True)
        await night.until(0.2)
        assert (await night.tick())["dull"].verdict is not Verdict.SKIP
        assert await queued(h) == {"dull"}


@virtual
async def test_nothing_is_filled_before_all_contexts_were_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_module, "STEP", 2)
    monkeypatch.setattr(survey_module, "STEPS", 1)
    async with house(tmp_path) as h:
        await h.state.budgets.set_limit(Scope(), Period.DAY, 2100)
        for n in range(5):
            await h.put(f"{n}" + "x" * 2990, name=f"c{n}")
        night = Night(h)
        found = await night.tick()
        assert {line.verdict for line in found.values()} == {Verdict.SKIP}
        assert all(str(UNKNOWN) in line.why for line in found.values())
        for _ in range(8):
            await asyncio.sleep(60)
            await night.tick()
        assert len(await queued(h)) == 2


@virtual
async def test_the_price_falls_with_what_is_wanted_and_the_rest_is_not_lost(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        night = Night(h)
        await h.state.budgets.set_limit(Scope(), Period.DAY, 1300)
        for name, size in (("small", 600), ("one", 2400), ("other", 2400)):
            await h.put(name + "x" * size, name=name)
            await asyncio.sleep(HOUR_S)
        await night.tick()
        assert await queued(h) == {"other"}
        await asyncio.sleep(HOUR_S)
        await night.tick()
        assert await queued(h) == {"other", "small"}, "there is room for this one, and for none that is worth more"


@virtual
@pytest.mark.parametrize(("policy", "first"), [("value", {"other"}), ("recency_frequency", {"other", "small"})])
async def test_a_worker_seeks_a_price_where_its_policy_is_value(
    tmp_path: Path, policy: Literal["value", "recency_frequency"], first: set[str]
) -> None:
    async with house(tmp_path) as h:
        h.settings = msgspec.structs.replace(SETTINGS, policy=policy)
        await h.state.budgets.set_limit(Scope(), Period.DAY, 1300)
        for name, size in (("small", 600), ("one", 2400), ("other", 2400)):
            await h.put(name + "x" * size, name=name)
            await asyncio.sleep(HOUR_S)
        async with h.working():
            await asyncio.sleep(60)
            assert {job.label for job in await h.state.jobs.jobs()} == first


def line(context: str, *, lasts_h: float | None = 0.0, pinned: bool = False, uses: int = 0) -> PlanLine:
    """Of a context of 100 tokens, used so often in each hour of the last month."""
    at_s = 20_000 * DAY_S
    hours = dict.fromkeys(range(int(at_s // HOUR_S) - 700, int(at_s // HOUR_S)), uses) if uses else {}
    last_s = at_s - HOUR_S if uses else None
    return PlanLine(
        tenant=T,
        context=ContextName(context),
        form=Form.CHAT,
        engine="local",
        key=None,
        verdict=Verdict.FILL,
        priority=0.0,
        total_tokens=100,
        missing_tokens=100,
        why="",
        pinned=pinned,
        case=Case(
            usage=Usage(last_access_s=last_s, accesses_7d=168 * uses, broken_7d=0, hours=hours),
            since_s=at_s - 30 * DAY_S,
            put_at_s=at_s - 30 * DAY_S,
            now_s=at_s,
            ttl_s=4 * HOUR_S,
        ),
        lasts_until_s=None if lasts_h is None else at_s + lasts_h * HOUR_S,
    )


def price(*lines: PlanLine, left: int) -> float:
    at_s = 20_000 * DAY_S
    found = price_of(
        lines,
        [
            BudgetLine(
                scope=Scope(), period=Period.DAY, limit=left, own=True, spent=0, reserved=0, resets_at_s=at_s + DAY_S
            )
        ],
        now_s=at_s,
    )
    assert found is not None
    return found.score


def test_a_fill_that_lasts_or_is_likely_to_be_used_wants_nothing_more() -> None:
    assert price(line("a", uses=10), line("b", uses=1), left=200) == 0
    assert price(line("a", uses=10), line("b", uses=1), left=100) > 0
    assert price(line("a", uses=10, lasts_h=24), line("b", uses=1), left=100) == 0
    assert price(line("a", uses=10, lasts_h=None), line("b", uses=1), left=100) == 0


def test_what_is_pinned_has_the_first_claim() -> None:
    assert price(line("a", pinned=True), line("b", uses=1), left=699) > 10**9
    assert price(line("a", pinned=True, lasts_h=None), line("b", uses=1), left=699) == 0


@virtual
async def test_a_new_day_has_a_new_price_and_a_clock_set_back_finds_one_too(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.state.budgets.set_limit(Scope(), Period.DAY, 2000)
        for n in range(5):
            await h.put(f"{n}" + "x" * 2990, name=f"c{n}")
        survey, walks = Survey(h.state), 0

        async def plan(found: Any) -> list[PlanLine]:
            nonlocal walks
            walks += 1
            engine = await FakeFillEngine().describe()
            return await plan_lines(h.state, [engine], now_s=h.wall(), default_ttl_s=HOUR_S) if found else []

        first, chosen = await survey.go_on(plan, now_s=h.wall())
        assert len(chosen) == 5, "all are worth the same; the budget decides"
        assert first is not None
        assert first.score > 0
        assert walks == 1
        assert await survey.go_on(plan, now_s=h.wall() + 60) == (first, [])
        assert walks == 1
        await survey.go_on(plan, now_s=h.wall() - 60)
        assert walks == 2
        after, _ = await survey.go_on(plan, now_s=h.wall() + DAY_S)
        assert walks == 3
        assert after is not None
        assert after.until_s == first.until_s + DAY_S
        await h.state.budgets.set_limit(Scope(), Period.DAY, 9000)
        raised, _ = await survey.go_on(plan, now_s=h.wall() + DAY_S)
        assert raised is not None
        assert raised.score == 0, "who raises a limit does not wait for ten minutes"
        await h.state.budgets.set_limit(Scope(), Period.DAY, None)
        assert await survey.go_on(plan, now_s=h.wall()) == (None, [])


@virtual
@pytest.mark.parametrize("fails_at", [1, 3, "having"])
async def test_a_step_that_failed_is_made_again_and_none_is_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int | str
) -> None:
    monkeypatch.setattr(survey_module, "STEP", 2)
    async with house(tmp_path) as h:
        await h.state.budgets.set_limit(Scope(), Period.DAY, 5100)
        for n in range(5):
            await h.put(f"{n}" + "x" * 2990, name=f"c{n}")
        engine = await FakeFillEngine().describe()
        steps = 0

        async def plan(found: Any) -> list[PlanLine]:
            nonlocal steps
            steps += 1
            if steps == fails_at:
                raise StateUnavailable("gone")
            lines = await plan_lines(h.state, [engine], now_s=h.wall(), default_ttl_s=7 * DAY_S)
            names = {due.context.name for due in found}
            return [line for line in lines if line.context in names]

        survey = Survey(h.state)
        with monkeypatch.context() as broken:
            if fails_at == "having":

                async def gone(*_: Any) -> Any:
                    raise StateUnavailable("gone")

                broken.setattr(h.state.agenda, "having", gone)
            with pytest.raises(StateUnavailable):
                await survey.go_on(plan, now_s=h.wall())
        found, chosen = await survey.go_on(plan, now_s=h.wall())
        assert found is not None
        assert found.score == 0, "there is room for each, once"
        assert len(chosen) == 2, "no more than a step"


@virtual
async def test_a_state_out_of_reach_amid_a_walk_ends_the_tick_and_the_walk_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        await h.state.budgets.set_limit(Scope(), Period.DAY, 2000)
        await h.put("x" * 2990)
        night = Night(h)
        with monkeypatch.context() as broken:

            async def gone(place: str, *, limit: int) -> Any:
                raise StateUnavailable("gone")

            broken.setattr(h.state.agenda, "after", gone)
            with pytest.raises(StateUnavailable):
                await night.tick()
        await night.tick()
        assert await queued(h) == {"repo"}
