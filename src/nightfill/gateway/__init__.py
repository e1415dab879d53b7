"""The front door: OpenAI-compatible HTTP."""

from nightfill.gateway.accounts import Accounts
from nightfill.gateway.assembly import serving
from nightfill.gateway.server import Server, stop_on_signals

__all__ = ["Accounts", "Server", "serving", "stop_on_signals"]
