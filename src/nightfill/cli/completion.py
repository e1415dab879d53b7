"""`nightfill completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands in a shell.

    \b
      bash: eval "$(nightfill completion bash)"     in ~/.bashrc
      zsh:  eval "$(nightfill completion zsh)"      in ~/.zshrc
      fish: nightfill completion fish | source      in ~/.config/fish/config.fish
    """
    from nightfill.cli.root import root

    kind = get_completion_class(shell)
    assert kind is not None
    maker = kind(root, {}, "nightfill", "_NIGHTFILL_COMPLETE")
    # Not `source()`: for bash that starts bash to ask its version, which is not the user's concern here.
    click.echo(maker.source_template % maker.source_vars())
