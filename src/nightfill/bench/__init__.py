"""Measuring: replay queries, report what they took."""
