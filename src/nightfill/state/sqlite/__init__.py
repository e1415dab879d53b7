"""Shared state of one machine, in one SQLite file."""

from nightfill.state.sqlite.state import SqliteState, open_state

__all__ = ["SqliteState", "open_state"]
