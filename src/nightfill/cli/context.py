"""`nightfill context`: what queries share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import click

from nightfill.cli.output import echo_json, echo_table, json_option, show_ago
from nightfill.cli.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from nightfill.cli.fill_now import Asked
    from nightfill.cli.given import Given
    from nightfill.cli.rooms import Rooms
    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import Context, ContextName, Fill, Form, Tenant
    from nightfill.contexts.context import ContextOptions
    from nightfill.state.state import State


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
    from nightfill.cli.given import Given
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant, parse_user
    from nightfill.contexts.context import ContextOptions

    forms = _forms(form, messages=given["messages"] is not None)
    _run(
        _add(
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
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_tenant

    _run(_list(Workspace.load(options), parse_tenant(tenant) if tenant else None, chats=chats, as_json=as_json))


@context.command()
@click.argument("name")
@click.option("--text", "as_text", is_flag=True, help="Print the content itself.")
@_tenant_option
@json_option
@click.pass_obj
def show(options: Options, /, name: str, as_text: bool, tenant: str, as_json: bool) -> None:
    """Show one context."""
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    _run(_show(Workspace.load(options), parse_tenant(tenant), parse_name(name), as_text=as_text, as_json=as_json))


@context.command()
@click.argument("names", nargs=-1, required=True)
@_tenant_option
@json_option
@click.pass_obj
def rm(options: Options, /, names: tuple[str, ...], tenant: str, as_json: bool) -> None:
    """Remove contexts: their text, their jobs, and the KV that no other context needs."""
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    _run(_remove(Workspace.load(options), parse_tenant(tenant), [parse_name(name) for name in names], as_json=as_json))


@context.command()
@click.argument("name")
@click.option("--again", is_flag=True, help="Also when it is ready.")
@_tenant_option
@_wait_options
@json_option
@click.pass_obj
def fill(options: Options, /, name: str, again: bool, tenant: str, waits: bool, timeout: float, as_json: bool) -> None:
    """Fill a context before all others."""
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    wait_s = timeout if waits else None
    _run(
        _fill(
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
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import parse_name, parse_tenant

    _run(_refresh(Workspace.load(options), parse_tenant(tenant), [parse_name(name) for name in names], as_json=as_json))


async def _add(
    workspace: Workspace,
    tenant: Tenant,
    name: ContextName,
    given: Given,
    *,
    forms: tuple[Form, ...],
    pin: bool,
    ttl_s: float | None,
    user: str,
    chosen: ContextOptions,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    from nightfill.cli.books import settle_s
    from nightfill.cli.given import take
    from nightfill.contexts import fingerprint_of
    from nightfill.contexts.bundle import show_bytes

    taken = take(given, workspace.settings.contexts)
    async with workspace.open_state() as state:
        before = await state.book.get(tenant, name)
        stored = await state.book.put(
            tenant=tenant,
            name=name,
            source=taken.source,
            content=taken.content,
            fingerprint=fingerprint_of(taken.content),
            forms=forms,
            pinned=pin,
            ttl_s=ttl_s,
            user=user,
            options=_merged(before.options, chosen) if before is not None else chosen,
        )
        await asyncio.sleep(settle_s(workspace.settings))
        same = before is not None and before.current == stored.current
        did = "added" if before is None else ("unchanged" if same else "changed")
        asked, fills = await _filled(state, stored, again=False, timeout_s=timeout_s)
        if as_json:
            view = await _view(state, stored)
            echo_json(
                {
                    **view,
                    "did": did,
                    "files": taken.files,
                    "left_out": taken.left_out,
                    "jobs": await _jobs(state, asked),
                }
            )
            return
        remark = f" ({taken.remark})" if taken.remark else ""
        click.echo(f"{did} {stored.name}@{stored.current[:8]}: {show_bytes(stored.content_bytes)}{remark}")
        if timeout_s is None:
            click.echo("it is filled when the machine is idle; `nightfill plan` says when")
        _say_filled(fills)


def _merged(before: ContextOptions, chosen: ContextOptions) -> ContextOptions:
    """What was not said stays as it was."""
    import msgspec

    said = {name: value for name, value in msgspec.structs.asdict(chosen).items() if value is not None}
    return msgspec.structs.replace(before, **said)


async def _list(workspace: Workspace, tenant: Tenant | None, *, chats: bool, as_json: bool) -> None:
    from nightfill.cli.books import usages
    from nightfill.cli.views import show_fill
    from nightfill.contexts.bundle import show_bytes
    from nightfill.contexts.sources import show_source
    from nightfill.state.views import context_view, fills_of

    async with workspace.open_state() as state:
        contexts = [one for one in await state.book.contexts(tenant) if chats or one.chat is None]
        fills = await state.book.fills(tenant)
        used = await usages(state, contexts)
    if as_json:
        echo_json([context_view(one, fills, usage) for one, usage in zip(contexts, used, strict=True)])
        return
    if not contexts:
        click.echo("no contexts yet: nightfill context add NAME FOLDER")
        return
    tenants = len({one.tenant for one in contexts}) > 1
    rows = [
        [
            *([one.tenant] if tenants else []),
            one.name + ("*" if one.pinned else ""),
            one.current[:8],
            show_bytes(one.content_bytes),
            "; ".join(show_fill(fill, one) for fill in fills_of(one, fills)) or "not filled",
            show_ago(usage.last_access_s),
            show_source(one.source),
        ]
        for one, usage in zip(contexts, used, strict=True)
    ]
    echo_table([*(["TENANT"] if tenants else []), "NAME", "VERSION", "SIZE", "FILLS", "LAST USED", "SOURCE"], rows)


async def _show(workspace: Workspace, tenant: Tenant, name: ContextName, *, as_text: bool, as_json: bool) -> None:
    from nightfill.cli.books import known
    from nightfill.contexts import Text

    async with workspace.open_state() as state:
        found = await known(state, tenant, name)
        content = await state.book.content(tenant, found.current) if as_text else None
        view = await _view(state, found)
    if content is not None and not as_json:
        if isinstance(content, Text):
            click.echo(content.text, nl=False)
        else:
            echo_json(content.messages)
    elif as_json:
        echo_json({**view, "content": content} if content is not None else view)
    else:
        for key, value in view.items():
            if key in ("fills", "options"):
                continue
            is_time = key.endswith("_at")
            shown = show_ago(value) if is_time else (", ".join(value) if isinstance(value, tuple) else value)
            click.echo(f"{key.removesuffix('_at').replace('_', ' ') + ':':<14} {'' if shown is None else shown}")
        for option, value in view["options"].items():
            click.echo(f"{option + ':':<14} {value if isinstance(value, str) else 'on' if value else 'off'}")
        for one in view["fills"]:
            click.echo(
                f"{'fill:':<14} {'distilled ' if one['distilled'] else ''}{one['form']} {one['state']}, "
                f"{one['stored_tokens']:,} of {one['tokens']:,} tokens in {one['fill_seconds']:.1f} s"
                f"{', ' + one['reason'] if one['reason'] else ''}"
            )


async def _remove(workspace: Workspace, tenant: Tenant, names: Sequence[ContextName], *, as_json: bool) -> None:
    from nightfill.cli.books import known, settle_s
    from nightfill.cli.rooms import open_rooms
    from nightfill.contexts.chats import about

    removed = []
    async with open_rooms(workspace) as rooms:
        for found in [await known(rooms.state, tenant, name) for name in dict.fromkeys(names)]:
            jobs, blocks, left = await _removed(rooms, found)
            for chat in about(await rooms.state.book.contexts(tenant), found.name):
                more = await _removed(rooms, chat)
                jobs, blocks, left = jobs + more[0], blocks + more[1], left or more[2]
            view = {"name": found.name, "jobs_cancelled": jobs, "blocks_dropped": blocks, "kv_left": left}
            removed.append(view)
    await asyncio.sleep(settle_s(workspace.settings))
    if as_json:
        echo_json(removed)
        return
    for view in removed:
        click.echo("removed {name}: its text, {blocks_dropped} blocks of KV, {jobs_cancelled} jobs".format_map(view))
        if view["kv_left"]:
            click.echo(f"some of its KV is deleted later, while nightfill runs: {view['kv_left']}")


async def _removed(rooms: Rooms, found: Context) -> tuple[int, int, str]:
    """Remove it; jobs cancelled, blocks dropped, and why some may be left."""
    from nightfill.cli.deletion import forget_fill
    from nightfill.state.jobs import JobKind
    from nightfill.state.views import fills_of

    book, tenant = rooms.state.book, found.tenant
    fills = fills_of(found, await book.fills(tenant))
    jobs = blocks = 0
    left = ""
    others = [other for other in await book.contexts(tenant) if other.name != found.name]
    versions = set(found.versions).difference(version for other in others for version in other.versions)
    for version in versions:
        for kind in JobKind:
            jobs += await rooms.state.jobs.cancel_target(kind=kind, target_prefix=f"{tenant}/{version}/")
    await book.delete(tenant, found.name)
    for one in fills:
        if one.key.fingerprint in versions:
            forgotten = await forget_fill(rooms, one)
            blocks += forgotten.dropped
            left = left or forgotten.why_left
    return jobs, blocks, left


async def _fill(
    workspace: Workspace, tenant: Tenant, name: ContextName, *, again: bool, timeout_s: float | None, as_json: bool
) -> None:
    from nightfill.cli.books import known
    from nightfill.cli.fill_now import ask

    async with workspace.open_state() as state:
        found = await known(state, tenant, name)
        if timeout_s is None:
            asked = await ask(state, found, again=again)
            fills: list[Fill] = []
        else:
            asked, fills = await _filled(state, found, again=again, timeout_s=timeout_s)
        if as_json:
            echo_json({**await _view(state, found), "jobs": await _jobs(state, asked)})
            return
    for one in asked:
        if one.job is None:
            click.echo(f"{name} ({one.key.form}) is ready already")
        elif timeout_s is None:
            click.echo(f"{name} ({one.key.form}): job {one.job.id} comes next")
    _say_filled([one for one, was in zip(fills, asked, strict=False) if was.job is not None])


async def _refresh(workspace: Workspace, tenant: Tenant, names: Sequence[ContextName], *, as_json: bool) -> None:
    from nightfill.cli.books import known, settle_s
    from nightfill.contexts import fingerprint_of
    from nightfill.contexts.sources import read, stat_mark

    done = []
    async with workspace.open_state() as state:
        found = [await known(state, tenant, name) for name in names] or await state.book.contexts(tenant)
        for one in found:
            did = "fixed"
            if stat_mark(one.source) is not None:
                content = read(one.source, workspace.settings.contexts).content
                fingerprint = fingerprint_of(content)
                if fingerprint == one.current:
                    await state.book.checked(tenant, one.name)
                    did = "unchanged"
                else:
                    stored = await state.book.replace(one, content=content, fingerprint=fingerprint)
                    did = "changed" if stored else "overtaken"
            done.append({"name": one.name, "did": did})
    await asyncio.sleep(settle_s(workspace.settings))
    if as_json:
        echo_json(done)
        return
    for view in done:
        click.echo(f"{view['name']}: {_DID[view['did']]}")


_DID = {
    "fixed": "given as text, never changes by itself",
    "unchanged": "unchanged",
    "changed": "changed; what follows the first change is filled again",
    "overtaken": "somebody else changed it meanwhile",
}


async def _filled(
    state: State, found: Context, *, again: bool, timeout_s: float | None
) -> tuple[list[Asked], list[Fill]]:
    """Fill and wait; nothing without a time-out."""
    from nightfill.cli.fill_now import ask, progress, wait

    if timeout_s is None:
        return [], []
    asked = await ask(state, found, again=again)
    with progress(asked) as watch:
        return asked, [await wait(state, one, timeout_s=timeout_s, watch=watch) for one in asked]


def _say_filled(fills: Sequence[Fill]) -> None:
    for one in fills:
        click.echo(f"{one.key.form}: {one.stored_tokens:,} tokens {one.state}, {one.fill_seconds:.1f} s of engine time")


async def _view(state: State, found: Context) -> dict[str, Any]:
    from nightfill.cli.books import usages
    from nightfill.state.views import context_view

    (usage,) = await usages(state, [found])
    return context_view(found, await state.book.outlines_of(found.tenant, *found.versions), usage)


async def _jobs(state: State, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """The jobs as they are now."""
    from nightfill.state.views import job_view

    return [job_view(await state.jobs.get(one.job.id) or one.job) for one in asked if one.job is not None]


def _forms(form: str | None, *, messages: bool) -> tuple[Form, ...]:
    from nightfill.contexts import Form

    if messages and form in ("completion", "both"):
        raise click.UsageError("--messages goes with --form chat alone")
    return tuple(Form) if form == "both" else (Form(form or "chat"),)


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)
