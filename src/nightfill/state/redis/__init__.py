"""Shared state of a fleet, in one Redis or Valkey server."""

from nightfill.state.redis.state import RedisState, open_redis_state

__all__ = ["RedisState", "open_redis_state"]
