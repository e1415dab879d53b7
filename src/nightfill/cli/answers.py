"""`nightfill answers`: what is stored of replies, and what storing them does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import click

from nightfill.cli.output import echo_json, echo_table, json_option
from nightfill.cli.units import parse_duration
from nightfill.errors import NotFound

if TYPE_CHECKING:
    from nightfill.answers.shadow import ShadowReport
    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import ContextName, Tenant

_MOST_ROWS: Final = 100_000
_TENANT: Final = {"default": "default", "show_default": True, "help": "Whose they are."}


@click.group()
def answers() -> None:
    """List and clear stored answers, and see how they do.

    They are off unless switched on: `nightfill context add NAME ... --answers shadow`, or the setting answers.mode.
    """


@answers.command("ls")
@click.option("--tenant", **_TENANT)  # type: ignore[arg-type]
@json_option
@click.pass_obj
def list_(options: Options, /, tenant: str, as_json: bool) -> None:
    """List contexts with the answers that were stored for them, and how often these served."""
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_tenant

    rows = asyncio.run(_listed(Workspace.load(options), parse_tenant(tenant)))
    if as_json:
        echo_json(rows)
    elif rows:
        shown = [[one[key] for key in ("context", "mode", "origin", "stored", "used", "uses")] for one in rows]
        echo_table(["CONTEXT", "MODE", "FROM", "STORED EVER", "USED", "USES"], shown)
    else:
        click.echo("no contexts yet: nightfill context add NAME FOLDER")


@answers.command()
@click.option("--context", "name", help="Only those of this context.")
@click.option("--tenant", **_TENANT)  # type: ignore[arg-type]
@json_option
@click.pass_obj
def clear(options: Options, /, name: str | None, tenant: str, as_json: bool) -> None:
    """Remove stored answers. What is asked again is computed, and stored, anew."""
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    context = parse_name(name) if name is not None else None
    dropped = asyncio.run(_cleared(Workspace.load(options), parse_tenant(tenant), context))
    if as_json:
        echo_json({"removed": dropped})
    else:
        click.echo(f"removed {dropped:,} answers")


@answers.command()
@click.option("--context", "name", help="Only requests about this context.")
@click.option("--since", default="7d", show_default=True, metavar="DURATION", help="How far to look back.")
@click.option("--alike", type=click.FloatRange(0, 1), help="Replies with a smaller cosine differ.  [default: 0.85]")
@click.option("--tenant", **_TENANT)  # type: ignore[arg-type]
@json_option
@click.pass_obj
def report(options: Options, /, name: str | None, since: str, alike: float | None, tenant: str, as_json: bool) -> None:
    """Say how many requests stored answers served, or would have served in shadow mode, and how often wrongly.

    A false hit is a stored answer that would have served and does not say what the model said.
    """
    from nightfill.answers.shadow import ALIKE
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    try:
        since_s = float(parse_duration(since))
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--since") from exc
    least = ALIKE if alike is None else alike
    context = parse_name(name) if name is not None else None
    found, rows = asyncio.run(
        _reported(Workspace.load(options), parse_tenant(tenant), context, since_s=since_s, least=least)
    )
    view = _view(found, rows=rows, least=least)
    if as_json:
        echo_json(view)
    else:
        _say(view)


async def _listed(workspace: Workspace, tenant: Tenant) -> list[dict[str, Any]]:
    settings = workspace.settings.answers
    async with workspace.open_state() as state:
        rows = []
        for one in await state.book.contexts(tenant):
            mode = one.options.answers or settings.tenants.get(tenant) or settings.mode
            counts = await state.answers.counts(tenant, one.name)
            rows += [
                {
                    "context": one.name,
                    "mode": mode,
                    "origin": origin.value,
                    "stored": count.stored,
                    "used": count.used,
                    "uses": count.uses,
                }
                for origin, count in counts.items()
            ] or [{"context": one.name, "mode": mode, "origin": "", "stored": 0, "used": 0, "uses": 0}]
        return rows


async def _cleared(workspace: Workspace, tenant: Tenant, context: ContextName | None) -> int:
    async with workspace.open_state() as state:
        if context is not None and await state.book.get(tenant, context) is None:
            raise NotFound(f"no context {context!r} of tenant {tenant!r}", param="context")
        return await state.answers.drop(tenant, context=context)


async def _reported(
    workspace: Workspace, tenant: Tenant, context: ContextName | None, *, since_s: float, least: float
) -> tuple[ShadowReport, int]:
    import time

    from nightfill.answers.shadow import shadow_report

    async with workspace.open_state() as state:
        rows = await state.access.recent(tenant=tenant, context=context, limit=_MOST_ROWS)
        if context is not None and not rows and await state.book.get(tenant, context) is None:
            # What was deleted may still be asked for while the access log has it.
            raise NotFound(f"no context {context!r} of tenant {tenant!r}, and no request for it", param="context")
    after_s = time.time() - since_s
    rows = [row for row in rows if row.at_s >= after_s]
    return shadow_report(rows, least=least), len(rows)


def _view(found: ShadowReport, *, rows: int, least: float) -> dict[str, Any]:
    return {
        "requests": rows,
        "served": {kind.value: found.served[kind] for kind in found.judged},
        "shadow": {
            "requests": found.requests,
            "hit_rate": found.hit_rate,
            "alike": least,
            **{
                kind.value: {
                    "hits": one.hits,
                    "same": one.same,
                    "different": one.different,
                    "unknown": one.unknown,
                    "false_hit_rate": one.false_rate,
                    "false_hit_rate_95": one.false_rate_bound,
                }
                for kind, one in found.judged.items()
            },
        },
        "lookups": dict(sorted(found.looked.items())),
        "seconds": {
            kind.value: {"p50": _quantile(seconds, 0.5), "p99": _quantile(seconds, 0.99)}
            for kind, seconds in found.seconds.items()
            if seconds
        },
    }


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _say(view: dict[str, Any]) -> None:
    served, shadow = view["served"], view["shadow"]
    click.echo(
        f"{view['requests']:,} requests; stored answers served {served['exact']:,}, and {served['near']:,} near ones"
    )
    if shadow["requests"]:
        click.echo(f"in shadow mode {shadow['requests']:,}, of which {shadow['hit_rate']:.1%} would have been served:")
        for kind in ("exact", "near"):
            one = shadow[kind]
            if one["false_hit_rate"] is None:
                rate = "none could be compared" if one["hits"] else ""
            else:
                rate = f"{one['false_hit_rate']:.2%} of these wrongly (at most {one['false_hit_rate_95']:.2%}, 95 %)"
            click.echo(f"  {kind + ':':<7} {one['hits']:,}{'; ' + rate if rate else ''}")
    else:
        click.echo("none in shadow mode: nightfill context add NAME ... --answers shadow")
    if view["lookups"]:
        click.echo()
        echo_table(["LOOK-UP", "REQUESTS"], list(view["lookups"].items()))
    for kind, seconds in view["seconds"].items():
        click.echo(f"{kind}: {1000 * seconds['p50']:.2f} ms at the median, {1000 * seconds['p99']:.2f} ms at p99")
