"""What `nightfill context` prints of contexts that there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nightfill.cli.books import known, usages
from nightfill.cli.output import echo_json, echo_table, show_ago
from nightfill.cli.views import show_fill
from nightfill.contexts import Text
from nightfill.contexts.bundle import show_bytes
from nightfill.contexts.sources import show_source
from nightfill.state.views import context_view, fills_of

if TYPE_CHECKING:
    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import Context, ContextName, Tenant
    from nightfill.state.state import State


async def echo_all(workspace: Workspace, tenant: Tenant | None, *, chats: bool, as_json: bool) -> None:
    """Print the contexts, of one tenant or of all, and how far each is filled."""
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


async def echo_one(workspace: Workspace, tenant: Tenant, name: ContextName, *, as_text: bool, as_json: bool) -> None:
    """Print a context, or its content. Raises NotFound."""
    async with workspace.open_state() as state:
        found = await known(state, tenant, name)
        content = await state.book.content(tenant, found.current) if as_text else None
        view = await view_of(state, found)
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


async def view_of(state: State, found: Context) -> dict[str, Any]:
    """What is known of a context, as JSON."""
    (usage,) = await usages(state, [found])
    return context_view(found, await state.book.outlines_of(found.tenant, *found.versions), usage)
