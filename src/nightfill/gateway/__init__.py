"""The front door: OpenAI-compatible HTTP."""

from nightfill.gateway.assembly import serving
from nightfill.gateway.server import Server, stop_on_signals

__all__ = ["Server", "serving", "stop_on_signals"]
