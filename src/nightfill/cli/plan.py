"""`nightfill plan`: what would be filled next, and why."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from nightfill.cli.output import echo_json, echo_table, json_option

if TYPE_CHECKING:
    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import Tenant
    from nightfill.sleep.plan import PlanLine


@click.command()
@click.option("--tenant", help="Only this one's contexts.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many lines, the first ones.")
@json_option
@click.pass_obj
def plan(options: Options, /, tenant: str | None, limit: int | None, as_json: bool) -> None:
    """Say in one line per context what would be filled next and why, or why it would not be.

    Changes nothing, and needs no running server.
    """
    from nightfill.cli.views import plan_view
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_tenant

    lines = asyncio.run(_plan(Workspace.load(options), parse_tenant(tenant) if tenant else None))[:limit]
    if as_json:
        echo_json([plan_view(line) for line in lines])
    elif not lines:
        click.echo("no contexts yet: nightfill context add NAME FOLDER")
    else:
        rows = [[line.context, line.form, line.verdict, f"{line.priority:.3g}", line.why] for line in lines]
        echo_table(["CONTEXT", "FORM", "VERDICT", "PRIORITY", "WHY"], rows)


async def _plan(workspace: Workspace, tenant: Tenant | None) -> list[PlanLine]:
    from nightfill.cli.rooms import open_rooms
    from nightfill.cli.upkeep import plan_now

    async with open_rooms(workspace) as rooms:
        return await plan_now(rooms, tenant)
