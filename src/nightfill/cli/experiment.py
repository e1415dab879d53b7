"""`nightfill experiment`: how the arms of an experiment compare; checked, stopped and started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from nightfill.cli.output import echo_json, echo_table, show_ago
from nightfill.cli.running_server import server_of, server_options
from nightfill.errors import NotFound

if TYPE_CHECKING:
    from nightfill.cli.rooms import Rooms
    from nightfill.cli.root import Options
    from nightfill.cli.running_server import RunningServer
    from nightfill.gateway.experiments import Experiments

_PATH: Final = "/v1/nightfill/experiments"


@click.group()
def experiment() -> None:
    """Compare two ways to answer on a share of the traffic (settings: `experiments`).

    \b
      nightfill experiment ls                            which run, and which were stopped
      nightfill experiment show NAME                     what arm b gains, with intervals
      nightfill experiment check NAME --file p.jsonl     whether arm b says the same
      nightfill experiment stop NAME                     all requests to arm a
    """


@experiment.command("ls")
@server_options
@click.pass_obj
def list_experiments(options: Options, /, url: str | None, api_key_env: str | None, as_json: bool) -> None:
    """List the experiments of a running server."""
    found = _found(server_of(options, url, api_key_env))["data"]
    if as_json:
        echo_json(found)
        return
    headers = ["NAME", "STATE", "ARM A", "ARM B", "SHARE", "REQUESTS A", "REQUESTS B", "FAILED A", "FAILED B", "WHY"]
    rows = []
    for one in found:
        a, b, stopped = one["arms"]["a"], one["arms"]["b"], one["stopped"]
        rows.append(
            [
                *(one["name"], one["state"], a["engine"], _arm_b(one), f"{one['share']:.0%}"),
                *(a["requests"], b["requests"], a["failures"], b["failures"]),
                "" if stopped is None else f"{stopped['reason']} ({show_ago(stopped['at'])})",
            ]
        )
    echo_table(headers, rows)


@experiment.command()
@click.argument("name")
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), help="Draw the times to a PNG file.")
@server_options
@click.pass_obj
def show(
    options: Options, /, name: str, chart: Path | None, url: str | None, api_key_env: str | None, as_json: bool
) -> None:
    """Show what each arm of an experiment did, and how they compare, with 95 % confidence intervals."""
    from nightfill.bench import chart as charts
    from nightfill.cli.experiment_report import compared, table_of, times_of

    if chart is not None:
        charts.require_matplotlib()
    found = server_of(options, url, api_key_env).ask("GET", f"{_PATH}/{quote(name, safe='')}")
    report = compared(found)
    if as_json:
        echo_json(report)
    else:
        click.echo(f"{name}: {report['state']}; arm a is {report['arms']['a']['engine']}, arm b {_arm_b(report)}")
        if report["stopped"] is not None:
            click.echo(f"stopped {show_ago(report['stopped']['at'])}: {report['stopped']['reason']}")
        echo_table(["", "ARM A", "ARM B", "B / A", "95 %"], table_of(report))
        if missed := report["arms"]["b"]["missed"]:
            click.echo(f"{missed} requests of arm b went to arm a: its engine was not up yet")
        _say_drift(report["drift"])
    times = times_of(found)
    if chart is not None and times:
        charts.draw(times, chart, title=f"Experiment {name}", axis="seconds (logarithmic)")


@experiment.command()
@click.argument("name")
@click.option(
    "--file",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Prompts, one OpenAI request (`messages` or `prompt`) a line.",
)
@click.option("--max-tokens", type=click.IntRange(1, 4096), default=32, show_default=True)
@server_options
@click.pass_obj
def check(
    options: Options, /, name: str, path: Path, max_tokens: int, url: str | None, api_key_env: str | None, as_json: bool
) -> None:
    """Have both arms answer the same prompts greedily, and compare what they say.

    Arm a answers each prompt twice: that is the noise. The server is told, and stops the experiment when the drift is
    beyond its bound. Exit status 1 if the experiment is stopped then.
    """
    from nightfill.cli.experiment_check import checked, read_prompts, view_of

    server = server_of(options, url, api_key_env)
    drift = checked(server, name, read_prompts(path), max_tokens=max_tokens)
    found = server.ask("POST", f"{_PATH}/{quote(name, safe='')}/drift", view_of(drift))
    if as_json:
        echo_json({**view_of(drift), "state": found["state"], "stopped": found["stopped"]})
    else:
        _say_drift(view_of(drift))
        if found["stopped"] is not None:
            click.echo(f"{name} is stopped: {found['stopped']['reason']}")
    if found["stopped"] is not None:
        raise click.exceptions.Exit(1)


@experiment.command()
@click.argument("name")
@server_options
@click.pass_obj
def stop(options: Options, /, name: str, url: str | None, api_key_env: str | None, as_json: bool) -> None:
    """Send all requests to arm a, until it is started again."""
    _act(server_of(options, url, api_key_env), name, "stop", as_json=as_json)


@experiment.command()
@click.argument("name")
@server_options
@click.pass_obj
def start(options: Options, /, name: str, url: str | None, api_key_env: str | None, as_json: bool) -> None:
    """Begin anew, with nothing counted, also after it was stopped."""
    _act(server_of(options, url, api_key_env), name, "start", as_json=as_json)


def experiments_of(rooms: Rooms) -> Experiments | None:
    """Those that the settings name; None where they name none. Raises BadSetting."""
    from nightfill.contexts.context import DEFAULT_TENANT
    from nightfill.gateway.experiments import Experiments

    settings = rooms.settings
    if not settings.experiments:
        return None
    tenants = tuple(settings.gateway.api_keys)
    return Experiments(
        settings.experiments,
        path=rooms.data_dir / "experiments.json",
        operators=tenants if len(tenants) == 1 else (DEFAULT_TENANT,),
    )


def _found(server: RunningServer) -> dict[str, Any]:
    try:
        return server.ask("GET", _PATH)
    except NotFound as exc:
        raise NotFound(f"{server.address} has no experiments: its settings name none") from exc


def _act(server: RunningServer, name: str, action: str, *, as_json: bool) -> None:
    found = server.ask("POST", f"{_PATH}/{quote(name, safe='')}/{action}")
    if as_json:
        echo_json(found)
    else:
        click.echo(f"{found['name']} is {found['state']}")


def _arm_b(found: dict[str, Any]) -> str:
    mode = f" ({found['mode']})" if found["mode"] else ""
    return f"{found['arms']['b']['engine']}{mode}"


def _say_drift(drift: dict[str, Any] | None) -> None:
    if drift is None:
        return
    far = "other tokens" if drift["drift"] is None else f"{drift['drift']:.3g} nats"
    noise = "other tokens" if drift["noise"] is None else f"{drift['noise']:.3g} nats"
    click.echo(
        f"{drift['same']} of {drift['prompts']} answers are the same; "
        f"arm b differs from arm a by {far} at the median, arm a from itself by {noise}"
    )
