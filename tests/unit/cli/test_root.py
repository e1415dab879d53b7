from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import msgspec
import pytest
from click.testing import CliRunner

from nightfill import cli as cli_package
from nightfill import errors
from nightfill.cli.root import COMMANDS, root

if TYPE_CHECKING:
    from fakes.cli import Cli

HEAVY = ("numpy", "xllamacpp", "httptools", "rich", "yaml", "msgspec", "uvicorn", "asyncio", "sqlite3")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['nightfill', '--help']\n"
        "from nightfill.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nightfill serve --model" in done.stdout
    assert done.stderr.strip() == "[]"


def test_every_command_is_where_the_list_says() -> None:
    for name, (where, line) in COMMANDS.items():
        module, _, attribute = where.partition(":")
        if name == "demo" and importlib.util.find_spec(module) is None:
            continue  # it comes with its own tests
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        assert line.endswith(".")
        assert CliRunner().invoke(root, [name, "--help"]).exit_code == 0


def test_help_lists_every_command() -> None:
    shown = CliRunner().invoke(root, ["--help"]).stdout
    assert all(name in shown and line in shown for name, (_, line) in COMMANDS.items())


def test_a_mistyped_command_gets_a_suggestion() -> None:
    result = CliRunner().invoke(root, ["contxt"])
    assert result.exit_code == 2
    assert "did you mean context?" in result.stderr


@pytest.mark.parametrize(
    ("error", "status", "hint"),
    [
        (errors.BadSource("folder /x: Permission denied"), 2, ""),
        (errors.NotFound("no context 'x'", param="context"), 2, "context ls"),
        (errors.StateUnavailable("locked"), 1, "doctor"),
        (errors.TierFull("full"), 1, "doctor"),
    ],
)
def test_our_errors_are_one_line_and_a_hint(
    error: errors.NightfillError, status: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    @click.option("--json", "as_json", is_flag=True)
    def failing(as_json: bool) -> None:
        raise error

    monkeypatch.setattr(root, "get_command", lambda _ctx, _name: failing)
    result = CliRunner().invoke(root, ["plan"])
    assert (result.exit_code, result.stdout) == (status, "")
    first, *rest = result.stderr.splitlines()
    assert first == f"error: {error}"
    assert len(rest) == bool(hint)
    assert hint in "".join(rest)
    result = CliRunner().invoke(root, ["plan", "--json"])
    assert (result.exit_code, result.stderr) == (status, "")
    body = msgspec.json.decode(result.stdout)["error"]
    assert (body["type"], body["message"]) == (type(error).__name__, str(error))


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(root, "get_command", lambda _ctx, _name: broken)
    assert isinstance(CliRunner().invoke(root, ["plan"]).exception, ZeroDivisionError)


def test_ctrl_c_ends_quietly_with_130() -> None:
    code = (
        "import click, os, signal, sys\n"
        "from nightfill.cli.root import root\n"
        "@click.command()\n"
        "def waiting():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    signal.pause()\n"
        "root.get_command = lambda ctx, name: waiting\n"
        "root.main(['plan'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stderr


def test_the_package_offers_main_alone() -> None:
    assert cli_package.__all__ == ["main"]


def test_a_bad_settings_file_is_named(cli: Cli) -> None:
    (cli.folder / "s.yaml").write_text("gateway: {prot: 1}")
    error = cli.refused("--config", cli.folder / "s.yaml", "context", "ls")
    assert "unknown setting gateway.prot; did you mean gateway.port?" in error
    assert "docs/settings.md" in error


def test_a_data_folder_that_cannot_be_made_is_an_error(cli: Cli) -> None:
    (cli.folder / "file").write_text("")
    result = CliRunner().invoke(root, ["--data-dir", str(cli.folder / "file" / "x"), "context", "ls"])
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete -o nosort"), ("zsh", "compdef"), ("fish", "complete ")])
def test_completion_scripts_are_printed(cli: Cli, shell: str, word: str) -> None:
    script = cli.ok("completion", shell)
    assert word in script
    assert "_NIGHTFILL_COMPLETE" in script
