"""`nightfill budget`: how many tokens background work may compute, and for whom."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from nightfill.cli.output import echo_json, echo_table, json_option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.state.budgets import BudgetLine, Period, Scope

_SCOPES = "all, tenant:NAME, or user:TENANT/NAME"


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def budget(ctx: click.Context, /, as_json: bool) -> None:
    """Show and set budgets of background work, in tokens by UTC day and month.

    \b
      nightfill budget                                       what is spent of each
      nightfill budget set user:default/ann --day 2_000_000  another limit than that of the settings
      nightfill budget set user:default/ann --default        the settings' again
    """
    if ctx.invoked_subcommand is None:
        _show(ctx.obj, (), as_json=as_json)


@budget.command()
@click.argument("scopes", nargs=-1, metavar="[SCOPE]...")
@json_option
@click.pass_obj
def show(options: Options, /, scopes: tuple[str, ...], as_json: bool) -> None:
    """Show what is spent and set aside of each budget, or of these: all, tenant:NAME, user:TENANT/NAME."""
    _show(options, scopes, as_json=as_json)


@budget.command("set")
@click.argument("scope")
@click.option("--day", type=click.IntRange(min=0, max=1 << 50), help="Tokens by UTC day.")
@click.option("--month", type=click.IntRange(min=0, max=1 << 50), help="Tokens by calendar month, UTC.")
@click.option("--default", "default", is_flag=True, help="Back to what the settings say.")
@json_option
@click.pass_obj
def set_budget(
    options: Options, /, scope: str, day: int | None, month: int | None, default: bool, as_json: bool
) -> None:
    """Give a scope limits of its own: all, tenant:NAME, or user:TENANT/NAME. They hold at once, for all processes.

    0 stops all background work of the scope that is not queued yet.
    """
    from nightfill.cli.workspace import Workspace
    from nightfill.state.budgets import Period

    given = {Period.DAY: day, Period.MONTH: month}
    limits = given if default else {period: tokens for period, tokens in given.items() if tokens is not None}
    if default == any(tokens is not None for tokens in given.values()):
        raise click.UsageError("give --day, --month or both, or else --default")
    found = asyncio.run(_set(Workspace.load(options), _parse(scope), limits))
    _say(found, as_json=as_json)


def _show(options: Options, scopes: Sequence[str], *, as_json: bool) -> None:
    from nightfill.cli.workspace import Workspace

    wanted = [_parse(scope) for scope in dict.fromkeys(scopes)]
    _say(asyncio.run(_lines(Workspace.load(options), wanted)), as_json=as_json)


def _say(lines: Sequence[BudgetLine], *, as_json: bool) -> None:
    from nightfill.state.views import budget_view

    if as_json:
        echo_json([budget_view(line) for line in lines])
        return
    rows = [
        [
            str(line.scope),
            line.period,
            "no bound" if line.limit is None else f"{line.limit:,}{'*' if line.own else ''}",
            line.spent,
            line.reserved,
            "" if line.left is None else f"{line.left:,}",
            f"{datetime.fromtimestamp(line.resets_at_s, UTC):%Y-%m-%d %H:%M} UTC",
        ]
        for line in lines
    ]
    echo_table(["BUDGET OF", "PERIOD", "LIMIT", "SPENT", "SET ASIDE", "LEFT", "RESETS"], rows)
    if any(line.own for line in lines):
        click.echo("* set by `nightfill budget set`")


def _parse(text: str) -> Scope:
    """Raises BadInput, which says what is allowed."""
    from nightfill.contexts import parse_tenant, parse_user
    from nightfill.errors import BadInput
    from nightfill.state.budgets import Scope

    kind, _, name = text.partition(":")
    tenant, slash, user = name.partition("/")
    if text == "all":
        return Scope()
    if kind == "tenant" and not slash:
        return Scope(parse_tenant(tenant, param="SCOPE"))
    if kind == "user" and slash:
        return Scope(parse_tenant(tenant, param="SCOPE"), parse_user(user, param="SCOPE"))
    raise BadInput(f"scope {text[:160]!a} must be {_SCOPES}", param="SCOPE")


async def _lines(workspace: Workspace, scopes: Sequence[Scope]) -> list[BudgetLine]:
    from nightfill.state.budgets import Scope

    async with workspace.open_state() as state:
        if not scopes:
            used = {line.scope for line in await state.budgets.lines()} | {Scope()}
            scopes = sorted(used, key=lambda scope: (scope.tenant or "", scope.user or ""))
        return await state.budgets.lines(scopes)


async def _set(workspace: Workspace, scope: Scope, limits: Mapping[Period, int | None]) -> list[BudgetLine]:
    async with workspace.open_state() as state:
        for period, tokens in limits.items():
            await state.budgets.set_limit(scope, period, tokens)
        return await state.budgets.lines([scope])
