"""The bill and the budgets over HTTP, from a real state file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from nightfill.config import PriceSettings
from nightfill.contexts import Fingerprint, Form, Tenant
from nightfill.contexts.context import ContextName
from nightfill.gateway.accounts import Accounts
from nightfill.state.access import Access
from nightfill.state.budgets import BudgetRules, Period, Scope
from nightfill.state.jobs import JobKind, QueueRules, Work, WorkerId
from nightfill.state.sqlite import SqliteState, open_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fakes.house import House

RULES = QueueRules(budgets=BudgetRules(user_day=1000))


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[SqliteState]:
    async with open_state(tmp_path / "state.db", rules=RULES) as state:
        yield state


@pytest.fixture
def house(house: House, state: SqliteState) -> House:
    house.settings = msgspec.structs.replace(house.settings, api_keys={"a": "key-a", "b": "key-b"})
    house.accounts = Accounts(
        ledger=state.ledger,
        budgets=state.budgets,
        prices=PriceSettings(serving_per_hour=7200.0, background_per_hour=3600.0),
    )
    return house


async def filled(state: SqliteState, tenant: str, *, user: str = "ann", tokens: int = 400) -> None:
    await state.jobs.enqueue(
        kind=JobKind.FILL, target=f"{tenant}/{user}", tenant=tenant, label="repo", priority=1, user=user
    )
    lease = await state.jobs.lease(WorkerId("w"), kinds=[JobKind.FILL], lease_s=30)
    assert lease is not None
    await state.jobs.complete(lease, work=Work(tokens=tokens, seconds=4.0))


async def asked(state: SqliteState, tenant: str) -> None:
    row = Access(
        at_s=time.time(),
        tenant=Tenant(tenant),
        context=ContextName("repo"),
        fingerprint=Fingerprint("f" * 64),
        form=Form.CHAT,
        model="m",
        layer="fill",
        prompt_tokens=400,
        promised_tokens=390,
        reused_tokens=390,
        output_tokens=1,
        ttft_s=0.1,
        total_s=0.1,
        restore_s=0.1,
        status=200,
        user="ann",
        saved_tokens=390,
        saved_s=3.0,
    )
    await state.access.append([row])


async def get(house: House, path: str, key: str = "key-a") -> tuple[int, Any]:
    async with (
        house.client() as client,
        client.get(f"/v1/nightfill/{path}", headers={"authorization": f"Bearer {key}"}) as reply,
    ):
        return reply.status, await reply.json()


async def test_a_tenant_sees_what_its_own_contexts_cost_and_saved(house: House, state: SqliteState) -> None:
    await filled(state, "a")
    await filled(state, "b", tokens=70)
    await asked(state, "a")
    status, bill = await get(house, "ledger")
    assert (status, bill["object"], bill["by"]) == (200, "list", "context")
    [row] = bill["data"]
    assert (row["tenant"], row["user"], row["context"]) == ("a", "ann", "repo")
    assert (row["background_tokens"], row["background_money"], row["fills"]) == (400, 4.0, 1)
    assert (row["saved_tokens"], row["saved_money"], row["hit_rate"], row["net"]) == (390, 6.0, 1.0, 2.0)
    assert row["break_even"] == pytest.approx(4 / 6)
    assert bill["total"]["background_tokens"] == 400, "not what another tenant's work came to"
    assert (await get(house, "ledger?by=total", key="key-b"))[1]["data"][0]["background_tokens"] == 70


@pytest.mark.parametrize(
    ("query", "param"),
    [("by=colour", "by"), ("since=soon", "since"), ("since=2026-13-01", "since"), ("tenant=b", "query")],
)
async def test_a_bill_of_nothing_that_there_is_is_refused(house: House, query: str, param: str) -> None:
    status, answer = await get(house, f"ledger?{query}")
    assert (status, answer["error"]["param"]) == (400, param)


async def test_a_bill_begins_with_the_day_that_was_asked_for(house: House, state: SqliteState) -> None:
    await filled(state, "a")
    _, bill = await get(house, "ledger?since=0d&by=day")
    assert [row["day"] for row in bill["data"]] == [bill["since"]] == [bill["until"]]
    assert (await get(house, "ledger?since=9000-01-01"))[1]["data"] == []


async def test_a_tenant_sees_its_budgets_and_those_of_its_users_alone(house: House, state: SqliteState) -> None:
    await filled(state, "a")
    await filled(state, "b")
    await state.budgets.set_limit(Scope("a", "bob"), Period.DAY, 7)
    _, shown = await get(house, "budgets")
    by_scope = {(row["tenant"], row["user"], row["period"]): row for row in shown["data"]}
    assert set(by_scope) == {("a", user, period) for user in (None, "ann", "bob") for period in ("day", "month")}
    ann = by_scope["a", "ann", "day"]
    assert (ann["limit"], ann["spent"], ann["reserved"], ann["left"], ann["own"]) == (1000, 400, 0, 600, False)
    assert ann["resets_at"] % 86400 == 0
    assert by_scope["a", "bob", "day"]["limit"] == 7
    assert by_scope["a", None, "month"]["left"] is None


async def test_metrics_know_what_all_have_spent_and_no_names(house: House, state: SqliteState) -> None:
    await filled(state, "a")
    await filled(state, "b", tokens=70)
    await state.budgets.set_limit(Scope(), Period.DAY, 5000)
    async with house.client() as client, client.get("/metrics") as reply:
        lines = [line for line in (await reply.text()).splitlines() if line.startswith("nightfill_background_")]
    assert {*lines} >= {
        'nightfill_background_tokens{period="day"} 470.0',
        'nightfill_background_tokens{period="month"} 470.0',
        'nightfill_background_reserved_tokens{period="day"} 0.0',
        'nightfill_background_limit_tokens{period="day"} 5000.0',
    }
    assert not any("limit" in line and "month" in line for line in lines), "there is no bound"


async def test_budgets_cannot_be_set_over_http(house: House) -> None:
    async with house.client() as client:
        headers = {"authorization": "Bearer key-a"}
        async with client.put("/v1/nightfill/budgets", headers=headers, json={"day": 1}) as reply:
            assert (reply.status, reply.headers["allow"]) == (405, "GET")
