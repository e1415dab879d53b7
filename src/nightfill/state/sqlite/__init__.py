"""Shared state of one machine, in one SQLite file."""

from nightfill.state.sqlite.database import damage
from nightfill.state.sqlite.state import SqliteState, open_state

__all__ = ["SqliteState", "damage", "open_state"]
