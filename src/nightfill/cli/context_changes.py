"""What `nightfill context` does to contexts, and says of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from nightfill.cli.books import known, settle_s
from nightfill.cli.context_shown import view_of
from nightfill.cli.deletion import forget_fill
from nightfill.cli.fill_now import ask, progress, wait
from nightfill.cli.given import take
from nightfill.cli.output import echo_json
from nightfill.cli.rooms import open_rooms
from nightfill.contexts import fingerprint_of
from nightfill.contexts.bundle import show_bytes
from nightfill.contexts.chats import about
from nightfill.contexts.sources import read, stat_mark
from nightfill.state.jobs import JobKind
from nightfill.state.views import fills_of, job_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.cli.fill_now import Asked
    from nightfill.cli.given import Given
    from nightfill.cli.rooms import Rooms
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import Context, ContextName, Fill, Form, Tenant
    from nightfill.contexts.context import ContextOptions
    from nightfill.state.state import State

_OPTIONS: Final = "changed options"
_DID: Final = {
    "fixed": "given as text, never changes by itself",
    "unchanged": "unchanged",
    "changed": "changed; what follows the first change is filled again",
    "overtaken": "somebody else changed it meanwhile",
}


async def add(
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
    """Add the context or change it, and fill it when there is a time-out. Raises UsageError, BadSource, BudgetSpent."""
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
        did = "added" if before is None else _changed(before, stored)
        asked, fills = await _filled(state, stored, again=False, timeout_s=timeout_s)
        if as_json:
            view = await view_of(state, stored)
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
        said = f"{did} of" if did == _OPTIONS else did
        click.echo(f"{said} {stored.name}@{stored.current[:8]}: {show_bytes(stored.content_bytes)}{remark}")
        if timeout_s is None:
            click.echo("it is filled when the machine is idle; `nightfill plan` says when")
        _say_filled(fills)


def _changed(before: Context, now: Context) -> str:
    if before.current != now.current:
        return "changed"
    said, was = ((one.source, one.forms, one.pinned, one.ttl_s, one.user, one.options) for one in (now, before))
    return "unchanged" if said == was else _OPTIONS


def _merged(before: ContextOptions, chosen: ContextOptions) -> ContextOptions:
    """What was not said stays as it was."""
    said = {name: value for name, value in msgspec.structs.asdict(chosen).items() if value is not None}
    return msgspec.structs.replace(before, **said)


async def remove(workspace: Workspace, tenant: Tenant, names: Sequence[ContextName], *, as_json: bool) -> None:
    """Remove contexts and the chats about them. Raises NotFound before anything is removed."""
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


async def fill(
    workspace: Workspace, tenant: Tenant, name: ContextName, *, again: bool, timeout_s: float | None, as_json: bool
) -> None:
    """Ask for the fills, and wait for them when there is a time-out. Raises NotFound, BadInput, BudgetSpent."""
    async with workspace.open_state() as state:
        found = await known(state, tenant, name)
        if timeout_s is None:
            asked = await ask(state, found, again=again)
            fills: list[Fill] = []
        else:
            asked, fills = await _filled(state, found, again=again, timeout_s=timeout_s)
        if as_json:
            echo_json({**await view_of(state, found), "jobs": await _jobs(state, asked)})
            return
    for one in asked:
        if one.job is None:
            click.echo(f"{name} ({one.key.form}) is ready already")
        elif timeout_s is None:
            click.echo(f"{name} ({one.key.form}): job {one.job.id} comes next")
    _say_filled([one for one, was in zip(fills, asked, strict=False) if was.job is not None])


async def refresh(workspace: Workspace, tenant: Tenant, names: Sequence[ContextName], *, as_json: bool) -> None:
    """Read the sources again: of these, or of all the tenant's when none is named. Raises NotFound, BadSource."""
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


async def _filled(
    state: State, found: Context, *, again: bool, timeout_s: float | None
) -> tuple[list[Asked], list[Fill]]:
    """Fill and wait; nothing without a time-out."""
    if timeout_s is None:
        return [], []
    asked = await ask(state, found, again=again)
    with progress(asked) as watch:
        return asked, [await wait(state, one, timeout_s=timeout_s, watch=watch) for one in asked]


def _say_filled(fills: Sequence[Fill]) -> None:
    for one in fills:
        click.echo(f"{one.key.form}: {one.stored_tokens:,} tokens {one.state}, {one.fill_seconds:.1f} s of engine time")


async def _jobs(state: State, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """The jobs as they are now."""
    return [job_view(await state.jobs.get(one.job.id) or one.job) for one in asked if one.job is not None]
