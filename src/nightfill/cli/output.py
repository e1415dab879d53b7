"""Tables and JSON on standard output."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from nightfill.cli.units import show_duration

if TYPE_CHECKING:
    from collections.abc import Sequence


def json_option(command: Any) -> Any:
    """The option `--json` of a command, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def echo_json(value: object) -> None:
    """One JSON document on one line."""
    click.echo(msgspec.json.encode(value).decode())


def echo_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their longest cell; numbers to the right. The same in a terminal and in a pipe."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(headers), *cells]) for column in range(len(headers))]
    right = [bool(rows) and all(isinstance(row[column], int | float) for row in rows) for column in range(len(headers))]
    for line in [list(headers), *cells]:
        aligned = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(aligned).rstrip())


def show_ago(at_s: float | None, *, now_s: float | None = None) -> str:
    """A moment in Unix seconds, as `5 min ago`; `never` for None."""
    if at_s is None:
        return "never"
    passed_s = (time.time() if now_s is None else now_s) - at_s
    return "just now" if passed_s < 1 else f"{show_duration(passed_s)} ago"


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
