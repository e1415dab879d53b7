"""`nightfill ledger`: what background work cost, and what it saved."""

from __future__ import annotations

import asyncio
import csv
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from nightfill.cli.output import echo_json, echo_table, json_option
from nightfill.cli.units import show_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import Tenant
    from nightfill.ledger import By


@click.command()
@click.option(
    "--by",
    type=click.Choice(["context", "user", "tenant", "day", "total"]),
    default="context",
    show_default=True,
    help="What a row is about.",
)
@click.option("--since", default="30d", show_default=True, metavar="7d|DATE", help="The first day, UTC.")
@click.option("--tenant", help="Only this one's.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@click.pass_obj
def ledger(options: Options, /, by: str, since: str, tenant: str | None, as_csv: bool, as_json: bool) -> None:
    """Show what background work cost, and what it saved as engines said themselves.

    Money is that of the settings `prices`. PAYS AT is the number of hits that pay for the background work. The last
    line is the total.
    """
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_tenant
    from nightfill.ledger import FIGURES, NAMES, By, parse_since

    now_s = time.time()
    kind, since_day = By(by), parse_since(since, now_s=now_s)
    whose = parse_tenant(tenant) if tenant else None
    found = asyncio.run(_bill(Workspace.load(options), kind, whose, since_day=since_day, now_s=now_s))
    if as_json:
        echo_json(found)
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, fieldnames=[*NAMES[kind], *FIGURES], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found["data"])
    elif not found["data"]:
        click.echo(f"nothing was filled or asked since {found['since']}")
    else:
        names = [name for name in NAMES[kind] if name != "tenant" or len({row["tenant"] for row in found["data"]}) > 1]
        headers = [*map(str.upper, names), *_HEADERS]
        rows = [[*(row[name] for name in names), *_cells(row)] for row in found["data"]]
        if names:
            rows.append(["total", *[""] * (len(names) - 1), *_cells(found["total"])])
        echo_table(headers, rows)


_HEADERS: Final = ("COMPUTED", "TIME", "COST", "HITS", "RATE", "REUSED", "TIME SAVED", "SAVED", "PAYS AT", "NET")


def _cells(row: Mapping[str, Any]) -> list[object]:
    from nightfill.ledger import show_money

    rate, pays = row["hit_rate"], row["break_even"]
    return [
        row["background_tokens"],
        show_duration(row["background_s"]),
        show_money(row["background_money"]),
        row["hits"],
        "-" if rate is None else f"{rate:.0%}",
        row["saved_tokens"],
        show_duration(row["saved_s"]),
        show_money(row["saved_money"]),
        "-" if pays is None else f"{pays:.1f}",
        show_money(row["net"]),
    ]


async def _bill(workspace: Workspace, by: By, tenant: Tenant | None, *, since_day: int, now_s: float) -> dict[str, Any]:
    from nightfill.ledger import bill

    async with workspace.open_state() as state:
        return await bill(
            state.ledger, workspace.settings.prices, by=by, since_day=since_day, now_s=now_s, tenant=tenant
        )
