"""`nightfill discovered`: what a running server has found in its traffic; and how the server comes to look for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from nightfill.cli.output import echo_json, echo_table, json_option, show_ago
from nightfill.cli.root import environment
from nightfill.cli.running_server import address_of, ask
from nightfill.cli.units import show_duration

if TYPE_CHECKING:
    from nightfill.cli.rooms import Rooms
    from nightfill.cli.root import Options
    from nightfill.cli.workspace import Workspace
    from nightfill.gateway.discovery import Discovery

_PATH: Final = "/v1/nightfill/discovery"


@click.command()
@click.option("--url", help="Address of the server.  [default: as the settings say]")
@click.option("--api-key-env", help="Name of the environment variable with the tenant's API key.")
@click.option("--register", "name", metavar="NAME", help="Make a context of a text that is kept.")
@click.option("--forget", is_flag=True, help="Have the server forget all that it found, and the texts it keeps.")
@json_option
@click.pass_obj
def discovered(
    options: Options, /, *, url: str | None, api_key_env: str | None, name: str | None, forget: bool, as_json: bool
) -> None:
    """Show prefixes that recur in a running server's traffic (settings: `discovery`).

    Of the tenant whose API key is given. No text is shown.
    """
    from nightfill.cli.workspace import Workspace

    if name is not None and forget:
        raise click.UsageError("give one of --register and --forget")
    address = url or address_of(Workspace.load(options).settings)
    key = environment().get(api_key_env, "") if api_key_env else ""
    if name is not None:
        from nightfill.contexts import parse_name

        found = ask(address, "POST", f"{_PATH}/{parse_name(name, param='name')}", key)
        said = f"{found['name']} is a context now"
    elif forget:
        found = ask(address, "DELETE", _PATH, key)
        said = "forgotten"
    else:
        found = ask(address, "GET", _PATH, key)
        said = ""
    if as_json:
        echo_json(found)
    elif said:
        click.echo(said)
    else:
        _show(found)


def discovery_of(workspace: Workspace, rooms: Rooms) -> Discovery:
    """What looks for contexts in a server's traffic."""
    from nightfill.cli.workspace import text_seal
    from nightfill.gateway.discovery import Discovery
    from nightfill.state.seal import NoSeal

    settings = workspace.settings
    return Discovery(
        rooms.state.book,
        rooms.state.access,
        settings.discovery,
        max_context_bytes=settings.contexts.max_bytes,
        tenants=len(settings.gateway.api_keys),
        seal=text_seal(settings.kv) or NoSeal(),
    )


def _show(found: dict[str, Any]) -> None:
    if not found["data"]:
        click.echo(f"no prefix of {found['min_tokens']:,} tokens has come twice yet")
    else:
        depth: dict[str | None, int] = {None: -1}
        rows = []
        for row in found["data"]:
            depth[row["name"]] = depth[row["within"]] + 1
            every = "-" if row["interval_p50_s"] is None else show_duration(row["interval_p50_s"])
            rows.append(
                [
                    "  " * depth[row["name"]] + row["name"],
                    row["form"],
                    row["model"],
                    row["tokens"],
                    row["requests"],
                    every,
                    show_ago(row["last_at"]),
                    row["stake_tokens"],
                ]
            )
        echo_table(["PREFIX", "FORM", "MODEL", "TOKENS", "REQUESTS", "AGAIN AFTER", "LAST", "AT STAKE"], rows)
    for one in found["kept"]:
        click.echo(
            f"{one['name']}: {one['bytes']:,} bytes of text are kept, and no context ({one['why_not_registered']}); "
            f"`nightfill discovered --register {one['name']}` makes it one"
        )
    if found["registered"]:
        click.echo(f"made contexts: {', '.join(found['registered'])}")
