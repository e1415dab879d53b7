"""Shared state of one machine, in one SQLite file."""
