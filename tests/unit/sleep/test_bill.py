"""What a plan withholds, over a real state file in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fakes.background import WALL_S, House, T, house
from fakes.fill_engine import SIGNATURE, FakeFillEngine
from fakes.virtual_time import now_s, virtual
from nightfill.config import PriceSettings
from nightfill.contexts.context import ContextName, FolderSource, Form, Text, TextSource
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.sleep.bill import LOOK_EVERY_S, Bill
from nightfill.sleep.plan import Verdict
from nightfill.sleep.planner import Planner, plan_lines
from nightfill.state.budgets import Period, Scope
from nightfill.state.jobs import JobKind, JobState, Work, WorkerId

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nightfill.contexts.context import Context, Source
    from nightfill.sleep.plan import PlanLine
    from nightfill.state.budgets import BudgetLine
    from nightfill.state.sqlite import SqliteState

DAY_S = 86400.0
PRICES = PriceSettings(serving_per_hour=3600.0, background_per_hour=3600.0)


async def put(
    state: SqliteState,
    name: str,
    text: str,
    *,
    user: str = "",
    pinned: bool = False,
    source: Source | None = None,
) -> Context:
    content = Text(text)
    return await state.book.put(
        tenant=T,
        name=ContextName(name),
        source=source or TextSource(),
        content=content,
        fingerprint=fingerprint_of(content),
        forms=[Form.CHAT],
        pinned=pinned,
        user=user,
    )


async def cost(state: SqliteState, name: str, *, user: str = "", tokens: int = 10, seconds: float = 1.2) -> None:
    """A fill of the context was done, and is not there any more."""
    await state.jobs.enqueue(kind=JobKind.FILL, target=f"cost/{name}", tenant=T, label=name, priority=9, user=user)
    lease = await state.jobs.lease(WorkerId("w"), kinds=[JobKind.FILL], lease_s=30)
    assert lease is not None
    await state.jobs.complete(lease, work=Work(tokens=tokens, seconds=seconds))


class Planning:
    """Plans `h` at any time, with the same bill or a new one."""

    def __init__(self, h: House, *, stop_after_s: float = 7 * DAY_S) -> None:
        self.state = h.state
        self.bill = Bill(h.state, prices=PRICES, stop_after_s=stop_after_s)

    async def lines(self, *, after_s: float = 0.0) -> dict[str, PlanLine]:
        engine = await FakeFillEngine().describe()
        now = WALL_S + now_s() + after_s
        found = await plan_lines(self.state, [engine], now_s=now, default_ttl_s=3600, bill=self.bill)
        return {line.context: line for line in found}

    async def tick(self) -> dict[str, PlanLine]:
        engine = await FakeFillEngine().describe()
        planner = Planner(self.state, clock=lambda: WALL_S + now_s(), default_ttl_s=3600, bill=self.bill)
        return {line.context: line for line in await planner.tick([engine])}


# --- what does not pay ---


@virtual
async def test_what_did_not_pay_in_its_time_is_stopped_and_says_so_with_figures(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await put(h.state, "repo", "x")
        await cost(h.state, "repo")
        planning = Planning(h)
        assert (await planning.lines(after_s=6.9 * DAY_S))["repo"].verdict is Verdict.FILL
        line = (await planning.lines(after_s=8 * DAY_S))["repo"]
        assert line.verdict is Verdict.SKIP
        assert line.why.startswith("stopped: cost 1.20, saved 0 in 8 days; pin it")


@virtual
async def test_pinning_new_text_and_the_setting_each_bring_it_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        for name in ("pinned", "anew", "stopped"):
            await put(h.state, name, name)
            await cost(h.state, name)
        planning = Planning(h)
        assert {line.verdict for line in (await planning.lines(after_s=8 * DAY_S)).values()} == {Verdict.SKIP}
        never = Planning(h, stop_after_s=0.0)
        assert {line.verdict for line in (await never.lines(after_s=8 * DAY_S)).values()} == {Verdict.FILL}
        await put(h.state, "pinned", "pinned", pinned=True)
        await asyncio.sleep(8 * DAY_S)
        await put(h.state, "anew", "another text")
        found = await planning.lines()
        assert {name: line.verdict for name, line in found.items()} == {
            "pinned": Verdict.FILL,
            "anew": Verdict.FILL,
            "stopped": Verdict.SKIP,
        }


@virtual
async def test_a_folder_that_changes_each_night_has_no_new_trial_with_each_change(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        for night in range(9):
            await put(h.state, "docs", f"night {night}", source=FolderSource("/srv"))
            await cost(h.state, "docs")
            await asyncio.sleep(DAY_S)
        line = (await Planning(h).lines())["docs"]
        assert line.verdict is Verdict.SKIP
        assert "cost 10.80" in line.why


@virtual
async def test_a_verdict_on_costs_is_not_asked_for_at_each_tick(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await put(h.state, "repo", "x")
        planning = Planning(h)
        assert (await planning.lines(after_s=8 * DAY_S))["repo"].verdict is Verdict.FILL
        await cost(h.state, "repo")
        assert (await planning.lines(after_s=8 * DAY_S + LOOK_EVERY_S - 1))["repo"].verdict is Verdict.FILL
        assert (await planning.lines(after_s=8 * DAY_S + LOOK_EVERY_S))["repo"].verdict is Verdict.SKIP


@virtual
async def test_what_is_queued_already_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await put(h.state, "repo", "x")
        planning = Planning(h)
        await planning.tick()
        await cost(h.state, "other")
        await h.state.budgets.set_limit(Scope(), Period.DAY, 0)
        assert (await planning.lines(after_s=8 * DAY_S))["repo"].verdict is Verdict.FILL


# --- what no budget has ---


@virtual
async def test_a_context_waits_for_its_users_budget_and_says_how_much_is_left(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.state.budgets.set_limit(Scope(T, "ann"), Period.DAY, 500)
        await cost(h.state, "old", user="ann", tokens=380)
        await put(h.state, "anns", "x" * 3000, user="ann")
        await put(h.state, "bobs", "y" * 3000, user="bob")
        found = await Planning(h).tick()
        assert found["bobs"].verdict is Verdict.FILL
        assert found["anns"].verdict is Verdict.SKIP
        assert found["anns"].why.startswith("waits for budget: ")
        for part in ("user ann of default", "120", "500", "1000"):
            assert part in found["anns"].why.replace(",", "")
        [job] = await h.state.jobs.jobs(states=[JobState.QUEUED])
        assert (job.label, job.user, job.needs, job.reserved_tokens) == ("bobs", "bob", SIGNATURE, 1000)


@virtual
async def test_what_comes_first_has_the_first_claim_and_leaves_room_for_what_fits(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.state.budgets.set_limit(Scope(), Period.DAY, 1000)
        for name, size in (("small", 600), ("one", 2100), ("other", 2100)):
            await put(h.state, name, name + "x" * size)
            await asyncio.sleep(3600)
        planning = Planning(h)
        shown, found = await planning.lines(), await planning.tick()
        assert found["other"].priority > found["one"].priority > found["small"].priority
        for lines in (shown, found):
            assert {name: line.verdict for name, line in lines.items()} == {
                "other": Verdict.FILL,
                "one": Verdict.SKIP,
                "small": Verdict.FILL,
            }
        day, _ = await h.state.budgets.lines([Scope()])
        assert day.reserved == sum(line.missing_tokens for line in found.values() if line.verdict is Verdict.FILL)


@virtual
async def test_the_next_day_has_budget_again(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.state.budgets.set_limit(Scope(T), Period.DAY, 1500)
        await cost(h.state, "old", tokens=1400)
        await put(h.state, "repo", "x" * 3000)
        planning = Planning(h)
        assert (await planning.tick())["repo"].verdict is Verdict.SKIP
        await asyncio.sleep(DAY_S)
        assert (await planning.tick())["repo"].verdict is Verdict.FILL


@virtual
async def test_a_budget_that_somebody_else_took_in_between_is_no_error(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await put(h.state, "repo", "x" * 3000)
        await h.state.budgets.set_limit(Scope(), Period.DAY, 10)
        planning = Planning(h)
        planning.bill = Bill(Late(h.state), prices=PRICES, stop_after_s=0.0)
        line = (await planning.tick())["repo"]
        assert (line.verdict, line.why.split(":")[0]) == (Verdict.SKIP, "waits for budget")
        assert await h.state.jobs.jobs() == []


class Late:
    """Books whose budgets are as they were before anybody took from them."""

    def __init__(self, state: SqliteState) -> None:
        self.ledger = state.ledger
        self.budgets = self

    async def lines(self, scopes: Sequence[Scope] | None = None) -> list[BudgetLine]:
        return []

    async def users(self, tenant: str) -> list[Scope]:
        raise NotImplementedError

    async def set_limit(self, scope: Scope, period: Period, tokens: int | None) -> None:
        raise NotImplementedError
