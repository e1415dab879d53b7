"""`nightfill models`: which models of a running server are awake; put to sleep, woken and pinned by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from nightfill.cli.output import echo_json, echo_table, show_ago
from nightfill.cli.running_server import server_of, server_options
from nightfill.cli.units import show_bytes, show_duration

if TYPE_CHECKING:
    from nightfill.cli.root import Options

_PATH: Final = "/v1/nightfill/engines"
_WAIT_S: Final = 600.0
"""For a model to wake, which takes it minutes where it is large."""


@click.group(invoke_without_command=True)
@server_options
@click.pass_context
def models(ctx: click.Context, /, url: str | None, api_key_env: str | None, as_json: bool) -> None:
    """Show the models of a running server, and put them to sleep (settings: `lifecycle`, `engines.N.device`).

    \b
      nightfill models                     what is awake, and the memory that it takes
      nightfill models sleep NAME          free its memory now; a request wakes it again
      nightfill models wake NAME           have it ready before somebody asks
      nightfill models pin NAME            keep it awake, whatever happens
    """
    if ctx.invoked_subcommand is None:
        _list(ctx.obj, url, api_key_env, as_json=as_json)


@models.command("ls")
@server_options
@click.pass_obj
def list_models(options: Options, /, url: str | None, api_key_env: str | None, as_json: bool) -> None:
    """List the models, their states and their memory."""
    _list(options, url, api_key_env, as_json=as_json)


@models.command()
@click.argument("name")
@click.option("--level", type=click.IntRange(1, 2), help="1: quick to wake; 2: holds next to nothing.")
@server_options
@click.pass_obj
def sleep(
    options: Options, /, name: str, level: int | None, url: str | None, api_key_env: str | None, as_json: bool
) -> None:
    """Put a model to sleep, once the requests in flight have ended. The next request wakes it."""
    _act(options, name, "sleep", url, api_key_env, {} if level is None else {"level": level}, as_json=as_json)


@models.command()
@click.argument("name")
@server_options
@click.pass_obj
def wake(options: Options, /, name: str, url: str | None, api_key_env: str | None, as_json: bool) -> None:
    """Wake a model, and put others to sleep where it needs their memory."""
    _act(options, name, "wake", url, api_key_env, {}, as_json=as_json)


@models.command()
@click.argument("name")
@server_options
@click.pass_obj
def pin(options: Options, /, name: str, url: str | None, api_key_env: str | None, as_json: bool) -> None:
    """Keep a model awake: it is put to sleep by hand alone. Until the server ends."""
    _act(options, name, "pin", url, api_key_env, {}, as_json=as_json)


@models.command()
@click.argument("name")
@server_options
@click.pass_obj
def unpin(options: Options, /, name: str, url: str | None, api_key_env: str | None, as_json: bool) -> None:
    """Let a model sleep again."""
    _act(options, name, "unpin", url, api_key_env, {}, as_json=as_json)


def _act(
    options: Options,
    name: str,
    action: str,
    url: str | None,
    key_name: str | None,
    body: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    found = server_of(options, url, key_name).ask(
        "POST", f"{_PATH}/{quote(name, safe='')}/{action}", body or None, wait_s=_WAIT_S
    )
    if as_json:
        echo_json(found)
    else:
        click.echo(f"{found['name']} is {found['state']}{', pinned' if found['pinned'] else ''}")


def _list(options: Options, url: str | None, key_name: str | None, *, as_json: bool) -> None:
    found = server_of(options, url, key_name).ask("GET", _PATH)["data"]
    if as_json:
        echo_json(found)
        return
    headers = ["NAME", "MODEL", "STATE", "SINCE", "DEVICE", "BYTES", "IN FLIGHT", "WAITING", "WAKES", "LAST WAKE"]
    echo_table([*headers, ""], [_row(one) for one in found])


def _row(engine: dict[str, Any]) -> list[object]:
    model = engine["lifecycle"]
    if model is None:
        return [engine["name"], engine["model"], "always awake", "", "", "", engine.get("in_flight", 0), 0, 0, "", ""]
    wake = model["last_wake"]
    return [
        engine["name"],
        engine["model"],
        model["state"],
        show_ago(model["since"]),
        model["device"],
        show_bytes(model["bytes"]),
        model["in_flight"],
        model["waiting"],
        model["wakes"],
        "" if wake is None else show_duration(sum(wake["seconds"].values())),
        ", ".join(part for part in ("pinned" * model["pinned"], model["error"]) if part),
    ]
