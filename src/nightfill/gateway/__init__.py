"""The front door: OpenAI-compatible HTTP."""

from nightfill.gateway.accounts import Accounts
from nightfill.gateway.assembly import FrontDoor
from nightfill.gateway.server import Server, stop_on_signals

__all__ = ["Accounts", "FrontDoor", "Server", "stop_on_signals"]
