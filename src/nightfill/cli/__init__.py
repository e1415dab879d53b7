"""The command line; the composition root. Importing it imports next to nothing, so that `nightfill --help` is quick."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run `nightfill`; ends the process with 0, 1 (it failed), 2 (bad input) or 130 (interrupted)."""
    from nightfill.cli.root import root

    root.main()
