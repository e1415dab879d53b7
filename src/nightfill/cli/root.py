"""The command `nightfill`: its options, its subcommands (imported when they are used), and how errors are shown."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from nightfill import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.errors import NightfillError

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("nightfill.cli.serve:serve", "Serve a model, and fill contexts while it is idle."),
    "work": ("nightfill.cli.work:work", "Run a background worker alone."),
    "context": ("nightfill.cli.context:context", "Add, list, fill and remove contexts."),
    "models": ("nightfill.cli.models:models", "Show which models are awake; put them to sleep, wake and pin them."),
    "jobs": ("nightfill.cli.jobs:jobs", "Look at background work; retry or cancel it."),
    "plan": ("nightfill.cli.plan:plan", "Say what would be filled next, and why."),
    "answers": ("nightfill.cli.answers:answers", "List and clear stored answers, and see how they do."),
    "foresee": ("nightfill.cli.foresee:foresee", "List the questions that are foreseen for a context."),
    "ledger": ("nightfill.cli.ledger:ledger", "Show what background work cost, and what it saved."),
    "budget": ("nightfill.cli.budget:budget", "Show and set how much background work may compute."),
    "verify": ("nightfill.cli.verify:verify", "Compare what is stored with what the engines compute."),
    "bench": ("nightfill.cli.bench:bench", "Measure the time to first token, with a fill and without."),
    "simulate": ("nightfill.cli.simulate:simulate", "Replay recorded traffic through each policy."),
    "profile": ("nightfill.cli.profile:profile", "Find prefixes that recur in logs of requests."),
    "discovered": ("nightfill.cli.discovered:discovered", "Show prefixes that recur in a server's traffic."),
    "experiment": ("nightfill.cli.experiment:experiment", "Compare two ways to answer on a share of the traffic."),
    "vllm-args": ("nightfill.cli.vllm_args:vllm_args", "Print the command line that starts a vLLM server."),
    "doctor": ("nightfill.cli.doctor:doctor", "Check this machine, and say what to do."),
    "demo": ("nightfill.cli.demo:demo", "Show the whole of it on this machine, in minutes."),
    "completion": ("nightfill.cli.completion:completion", "Print a script that completes commands in a shell."),
}
"""Where each subcommand is, and its line in the list of commands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was given before the subcommand; the subcommands' `click.pass_obj`."""

    config: Path | None = None
    data_dir: str | None = None
    verbose: bool = False


class Root(click.Group):
    """A group that imports a subcommand only to run it, and that shows our errors as one line."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """The names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand."""
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            if near and not ctx.resilient_parsing:
                ctx.fail(f"no such command: {cmd_name}; did you mean {near[0]}?")
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run; see `nightfill.cli.main` for the exit status."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        arguments = list(args) if args is not None else sys.argv[1:]
        from nightfill.errors import NightfillError

        try:
            status = super().main(arguments, prog_name or "nightfill", complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(130)
        except NightfillError as error:
            _end(error, as_json="--json" in arguments)
        sys.exit(status if isinstance(status, int) else 0)


def _end(error: NightfillError, *, as_json: bool) -> NoReturn:
    from nightfill.errors import BadInput

    hint = _hint(error)
    if as_json:
        import msgspec

        body = {
            "type": type(error).__name__,
            "message": str(error),
            "param": getattr(error, "param", None),
            "hint": hint,
        }
        click.echo(msgspec.json.encode({"error": body}).decode())
    else:
        click.echo(f"error: {error}", err=True)
        if hint:
            click.echo(f"hint: {hint}", err=True)
    sys.exit(2 if isinstance(error, BadInput) else 1)


def _hint(error: NightfillError) -> str:
    """What to do about it, where the message does not say."""
    from nightfill import errors

    hints: list[tuple[type[NightfillError], str]] = [
        (errors.BadSetting, "docs/settings.md lists every setting; `nightfill doctor` checks them"),
        (errors.NotFound, "`nightfill context ls` and `nightfill jobs ls` show what there is"),
        (errors.BudgetSpent, "`nightfill budget` shows what is spent, `nightfill budget set` gives more"),
        (errors.StateError, "`nightfill doctor` looks at the state file and its folder"),
        (errors.KvError, "`nightfill doctor` looks at the store's folders and their free space"),
        (errors.EngineStart, "`nightfill doctor` looks at the model and the engine"),
    ]
    return next((hint for kind, hint in hints if isinstance(error, kind)), "")


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings, a YAML file.")
@click.option("--data-dir", help="Folder of state and KV.  [default: the user's data folder]")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.version_option(__version__, message="nightfill %(version)s")
@click.pass_context
def root(ctx: click.Context, config: Path | None, data_dir: str | None, verbose: bool) -> None:
    """Pre-compute long-lived LLM context while the machine is idle, and prove per request that it was used.

    \b
      nightfill serve --model m.gguf        an OpenAI-compatible server on http://127.0.0.1:8700
      nightfill context add repo ./src      a context to ask about; it is filled when the machine is idle
      nightfill demo                        see it work, with a model made on the spot
    """
    ctx.obj = Options(config=config, data_dir=data_dir, verbose=verbose)


def environment() -> dict[str, str]:
    """The process's environment; commands read it through here alone."""
    return dict(os.environ)
