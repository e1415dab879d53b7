"""Shared state, behind protocols."""
