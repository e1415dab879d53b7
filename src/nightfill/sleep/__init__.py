"""When background work runs, and what it does."""
