"""Stored answers: which may serve a request, and how a near one is found and checked."""
