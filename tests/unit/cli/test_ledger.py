from __future__ import annotations

import csv
import io
import time
from typing import TYPE_CHECKING

from nightfill.contexts import ContextName, Fingerprint, Form, Tenant
from nightfill.state.access import Access
from nightfill.state.jobs import JobKind, Work, WorkerId

if TYPE_CHECKING:
    from fakes.cli import Cli
    from nightfill.state.sqlite import SqliteState


async def spend(state: SqliteState, *, context: str = "repo", tenant: str = "default", tokens: int = 900) -> None:
    await state.jobs.enqueue(
        kind=JobKind.FILL, target=f"{tenant}/{context}", tenant=tenant, label=context, priority=1, user="ann"
    )
    lease = await state.jobs.lease(WorkerId("w"), kinds=[JobKind.FILL], lease_s=30)
    assert lease is not None
    await state.jobs.complete(lease, work=Work(tokens=tokens, seconds=18.0, machine="spot"))


async def use(state: SqliteState) -> None:
    row = Access(
        at_s=time.time(),
        tenant=Tenant("default"),
        context=ContextName("repo"),
        fingerprint=Fingerprint("f" * 64),
        form=Form.CHAT,
        model="m",
        layer="fill",
        prompt_tokens=910,
        promised_tokens=900,
        reused_tokens=900,
        output_tokens=1,
        ttft_s=0.1,
        total_s=0.1,
        restore_s=0.1,
        status=200,
        user="ann",
        saved_tokens=900,
        saved_s=18.0,
    )
    await state.access.append([row])


def test_an_empty_ledger_says_so_and_has_a_total_of_nothing(cli: Cli) -> None:
    assert cli.ok("ledger").startswith("nothing was filled or asked since 20")
    found = cli.json("ledger")
    assert (found["data"], found["total"]["background_tokens"], found["total"]["net"]) == ([], 0, 0)
    assert cli.ok("ledger", "--csv").splitlines()[1:] == []


def test_the_same_figures_come_as_table_json_and_csv(cli: Cli) -> None:
    cli.state(spend)
    cli.state(use)
    found = cli.json("ledger", "--since", "1d")
    [row] = found["data"]
    assert (row["tenant"], row["user"], row["context"]) == ("default", "ann", "repo")
    assert (row["background_tokens"], row["saved_tokens"], row["hit_rate"]) == (900, 900, 1.0)
    assert row["background_money"] == 18 * 1.66 / 3600, "at the price of background work: no machine has another"
    [line] = csv.DictReader(io.StringIO(cli.ok("ledger", "--csv")))
    assert {key: str(value) for key, value in row.items()} == line
    table = cli.ok("ledger").splitlines()
    assert table[0].split()[:3] == ["USER", "CONTEXT", "COMPUTED"]
    assert table[1].split()[:3] == ["ann", "repo", "900"]
    assert "0.0083" in table[1]
    assert table[2].split()[:2] == ["total", "900"]


def test_rows_can_be_about_other_things_and_of_one_tenant(cli: Cli) -> None:
    cli.state(spend)
    cli.state(lambda state: spend(state, tenant="acme", context="docs", tokens=50))
    assert [row["tenant"] for row in cli.json("ledger", "--by", "tenant")["data"]] == ["acme", "default"]
    assert cli.json("ledger", "--by", "day")["total"]["background_tokens"] == 950
    assert [row["context"] for row in cli.json("ledger", "--tenant", "acme")["data"]] == ["docs"]
    [row] = cli.json("ledger", "--by", "total")["data"]
    assert (row["background_tokens"], "tenant" in row) == (950, False)
    assert len(cli.ok("ledger", "--by", "total").splitlines()) == 2, "one row, and no total of it"
    assert "TENANT" in cli.ok("ledger").splitlines()[0], "where there are several"


def test_a_machine_has_its_own_price(cli: Cli) -> None:
    cli.state(spend)
    settings = cli.folder / "settings.yaml"
    settings.write_text("prices: {machines: {spot: 0.36}}\n")
    [row] = cli.json("--config", settings, "ledger")["data"]
    assert row["background_money"] == 18 * 0.36 / 3600


def test_a_day_that_is_none_is_refused(cli: Cli) -> None:
    assert "since 'soon' must be a number of days such as 7d, or a date" in cli.refused("ledger", "--since", "soon")
