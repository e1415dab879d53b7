"""`nightfill context`: what queries share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import click

from nightfill.cli.output import json_option
from nightfill.cli.units import parse_duration

if TYPE_CHECKING:
    from nightfill.cli.root import Options
    from nightfill.contexts import Form


class _Duration(click.ParamType[float]):
    """`30`, `4h`, `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(parse_duration(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _tenant_option(command: Any) -> Any:
    return click.option("--tenant", default="default", show_default=True, help="Whose it is.")(command)


def _wait_options(command: Any) -> Any:
    command = click.option("--timeout", type=_Duration(), default="1h", show_default=True, help="Of --wait.")(command)
    return click.option("--wait", "waits", is_flag=True, help="Fill it now, and come back when that is done.")(command)


def _own_options(command: Any) -> Any:
    for option in (
        click.option("--history/--no-history", default=None, help="Fill the next turn of chats about it."),
        click.option("--distil/--no-distil", default=None, help="Make a distilled version, if it is long enough."),
        click.option("--foresee/--no-foresee", default=None, help="Prepare answers to likely questions."),
        click.option(
            "--answers",
            type=click.Choice(["off", "shadow", "exact", "near"]),
            help="Serve stored answers.  [default of these: as before, or as the settings say]",
        ),
    ):
        command = option(command)
    return command


@click.group()
def context() -> None:
    """Add, list, fill and remove contexts: the long-lived texts that many queries share.

    These commands work on the data folder itself, with or without a running server.
    """


@context.command()
@click.argument("name")
@click.argument("paths", nargs=-1, type=click.Path(exists=True))
@click.option("--text", metavar="FILE", help="Take this file's text as it is; - for standard input.")
@click.option("--messages", metavar="FILE", help='JSON list of {"role", "content"}; - for standard input.')
@click.option("--git", metavar="REVISION", help="Take the files of a revision of --repo.")
@click.option("--repo", type=click.Path(exists=True, file_okay=False), default=".", help="Of --git.  [default: .]")
@click.option("--subdir", default="", help="Of --git: only what lies below.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Of a folder, only such files (as in .gitignore).")
@click.option("--form", type=click.Choice(["chat", "completion", "both"]), help="Fill for chat (default), completions.")
@click.option("--pin", is_flag=True, help="Keep its KV, whatever else needs room.")
@click.option("--ttl", type=_Duration(), help="Keep its KV for so long after its last use.")
@click.option("--user", default="", help="Whose it is within the tenant, and whose budget pays.  [default: nobody's]")
@_own_options
@_tenant_option
@_wait_options
@json_option
@click.pass_obj
def add(
    options: Options,
    /,
    name: str,
    form: str | None,
    pin: bool,
    ttl: float | None,
    user: str,
    tenant: str,
    waits: bool,
    timeout: float,
    as_json: bool,
    answers: Literal["off", "shadow", "exact", "near"] | None,
    foresee: bool | None,
    distil: bool | None,
    history: bool | None,
    **given: Any,
) -> None:
    """Add a context, or give it new content.

    \b
      nightfill context add repo ./src --include '*.py'
      nightfill context add manual manual.md faq.md
      nightfill context add release --git v1.2 --repo . --subdir src
      generate | nightfill context add notes --text -

    A folder, files and a git branch are read again when they change. Of a folder are left out: what .gitignore says,
    hidden, binary and very large files, and symbolic links.
    """
    from nightfill.cli import context_changes
    from nightfill.cli.given import Given
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant, parse_user
    from nightfill.contexts.context import ContextOptions

    forms = _forms(form, messages=given["messages"] is not None)
    asyncio.run(
        context_changes.add(
            Workspace.load(options),
            parse_tenant(tenant),
            parse_name(name),
            Given(**given),
            forms=forms,
            pin=pin,
            ttl_s=ttl,
            user=parse_user(user) if user else "",
            chosen=ContextOptions(answers=answers, foresee=foresee, distil=distil, history=history),
            timeout_s=timeout if waits else None,
            as_json=as_json,
        )
    )


@context.command("ls")
@click.option("--tenant", help="Only this one's.")
@click.option("--all", "chats", is_flag=True, help="Also chats that are kept for their next turn.")
@json_option
@click.pass_obj
def list_contexts(options: Options, /, tenant: str | None, chats: bool, as_json: bool) -> None:
    """List contexts and how far each is filled."""
    from nightfill.cli import context_shown
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_tenant

    asyncio.run(
        context_shown.echo_all(
            Workspace.load(options), parse_tenant(tenant) if tenant else None, chats=chats, as_json=as_json
        )
    )


@context.command()
@click.argument("name")
@click.option("--text", "as_text", is_flag=True, help="Print the content itself.")
@_tenant_option
@json_option
@click.pass_obj
def show(options: Options, /, name: str, as_text: bool, tenant: str, as_json: bool) -> None:
    """Show one context."""
    from nightfill.cli import context_shown
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    asyncio.run(
        context_shown.echo_one(
            Workspace.load(options), parse_tenant(tenant), parse_name(name), as_text=as_text, as_json=as_json
        )
    )


@context.command()
@click.argument("names", nargs=-1, required=True)
@_tenant_option
@json_option
@click.pass_obj
def rm(options: Options, /, names: tuple[str, ...], tenant: str, as_json: bool) -> None:
    """Remove contexts: their text, their jobs, and the KV that no other context needs."""
    from nightfill.cli import context_changes
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    asyncio.run(
        context_changes.remove(
            Workspace.load(options), parse_tenant(tenant), [parse_name(name) for name in names], as_json=as_json
        )
    )


@context.command()
@click.argument("name")
@click.option("--again", is_flag=True, help="Also when it is ready.")
@_tenant_option
@_wait_options
@json_option
@click.pass_obj
def fill(options: Options, /, name: str, again: bool, tenant: str, waits: bool, timeout: float, as_json: bool) -> None:
    """Fill a context before all others."""
    from nightfill.cli import context_changes
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    wait_s = timeout if waits else None
    asyncio.run(
        context_changes.fill(
            Workspace.load(options),
            parse_tenant(tenant),
            parse_name(name),
            again=again,
            timeout_s=wait_s,
            as_json=as_json,
        )
    )


@context.command()
@click.argument("names", nargs=-1)
@_tenant_option
@json_option
@click.pass_obj
def refresh(options: Options, /, names: tuple[str, ...], tenant: str, as_json: bool) -> None:
    """Read sources again now; all of the tenant's when no name is given."""
    from nightfill.cli import context_changes
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    asyncio.run(
        context_changes.refresh(
            Workspace.load(options), parse_tenant(tenant), [parse_name(name) for name in names], as_json=as_json
        )
    )


def _forms(form: str | None, *, messages: bool) -> tuple[Form, ...]:
    from nightfill.contexts import Form

    if messages and form in ("completion", "both"):
        raise click.UsageError("--messages goes with --form chat alone")
    return tuple(Form) if form == "both" else (Form(form or "chat"),)
