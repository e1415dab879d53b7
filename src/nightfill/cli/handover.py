"""Settings on their way from `nightfill serve` to its worker: one line of JSON on standard input, never an argument
that others can see in a list of processes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nightfill.cli.units import decode_unit
from nightfill.config import ByteSize, Duration, Settings


def encode_settings(settings: Settings) -> bytes:
    """As one line, without its end."""
    return msgspec.json.encode(settings, enc_hook=_plain)


def decode_settings(line: bytes) -> Settings:
    """The inverse. Raises msgspec.ValidationError."""
    return msgspec.json.decode(line, type=Settings, dec_hook=decode_unit)


def _plain(value: Any) -> Any:
    if isinstance(value, ByteSize):
        return int(value)
    if isinstance(value, Duration):
        return float(value)
    raise NotImplementedError(type(value))
