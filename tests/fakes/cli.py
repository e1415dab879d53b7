"""The command line, run in the test's process on a data folder of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from click.testing import CliRunner, Result

from nightfill.cli.root import root
from nightfill.state.sqlite import SqliteState, open_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


class Cli:
    """Runs `nightfill` in this process, on a data folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.folder = folder

    def __call__(self, *arguments: str | Path, stdin: str | None = None) -> Result:
        given = ["--data-dir", str(self.data), *map(str, arguments)]
        return CliRunner().invoke(root, given, input=stdin)

    def ok(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Standard output of a run that must succeed."""
        result = self(*arguments, stdin=stdin)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def json(self, *arguments: str | Path) -> Any:
        """The JSON that a run which must succeed prints."""
        return msgspec.json.decode(self.ok(*arguments, "--json"))

    def refused(self, *arguments: str | Path, status: int = 2) -> str:
        """Standard error of a run that must end with `status`."""
        result = self(*arguments)
        assert result.exit_code == status, (result.output, result.exception)
        return result.stderr

    def state(self, act: Callable[[SqliteState], Awaitable[Any]]) -> Any:
        """What `act` does to the state."""

        async def run() -> Any:
            async with open_state(self.data / "state.db") as state:
                return await act(state)

        return asyncio.run(run())
