"""Sizes and durations as people write them."""

from __future__ import annotations

import math
import re
from typing import Any, Final

from nightfill.config import ByteSize, Duration

_NUMBER: Final = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*([a-zA-Z]*)\s*")
_BYTES: Final[dict[str, float]] = {
    "": 1,
    "b": 1,
    **{f"{unit}b": 1000 ** (power + 1) for power, unit in enumerate("kmgtp")},
    **{f"{unit}ib": 1024 ** (power + 1) for power, unit in enumerate("kmgtp")},
}
_SECONDS: Final[dict[str, float]] = {
    "": 1,
    "ms": 0.001,
    "s": 1,
    "m": 60,
    "min": 60,
    "h": 3600,
    "d": 86400,
    "w": 7 * 86400,
}
_SIZE_FORM: Final = "must be a size such as 512, 64KiB, 1.5GB or 2TiB"
_DURATION_FORM: Final = "must be a duration such as 30, 250ms, 90s, 5m, 4h or 7d"


def parse_size(value: object) -> ByteSize:
    """Bytes from a number or a text such as `64KiB`. Raises ValueError, which says what is allowed."""
    number = _scaled(value, _BYTES, _SIZE_FORM)
    if number != int(number) and not isinstance(value, str):
        raise ValueError(_SIZE_FORM)
    return ByteSize(int(number))


def parse_duration(value: object) -> Duration:
    """Seconds from a number or a text such as `4h`. Raises ValueError, which says what is allowed."""
    return Duration(_scaled(value, _SECONDS, _DURATION_FORM))


def decode_unit(kind: type, value: Any) -> Any:
    """The hook by which msgspec decodes our own types. Raises ValueError."""
    if kind is ByteSize:
        return parse_size(value)
    if kind is Duration:
        return parse_duration(value)
    raise NotImplementedError(kind)


def show_duration(seconds: float) -> str:
    """Seconds for people: `0.25 s`, `3.2 s`, `5 min`, `4.0 h`, `7 d`."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"


def show_bytes(count: int) -> str:
    """A number of bytes, as `1.2 GiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _scaled(value: object, units: dict[str, float], form: str) -> float:
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if not match or match[2].lower() not in units:
            raise ValueError(form)
        number = float(match[1].replace("_", "")) * units[match[2].lower()]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    else:
        raise ValueError(form)  # noqa: TRY004 - the kind of error that msgspec passes on
    if not math.isfinite(number) or number < 0:
        raise ValueError(form)
    return number
