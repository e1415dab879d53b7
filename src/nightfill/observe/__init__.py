"""Metrics and logs."""

from nightfill.observe.logs import formatter, set_up

__all__ = ["formatter", "set_up"]
