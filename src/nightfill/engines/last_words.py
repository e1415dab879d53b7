"""What an engine's process said last, to tell why it ended. Bounded, and without any request's text."""

from __future__ import annotations

import re
from collections import deque
from typing import Final

_LINES: Final = 40
_LINE_BYTES: Final = 400
_NOTHING: Final = re.compile(rb"(?!)")
_STAMP: Final = re.compile(r"^([\d.]+ [EWI] |(\(\w+( pid=\d+)?\) )?(ERROR|CRITICAL) [^\]]*\] )")
"""llama.cpp's, and vLLM's."""


class LastWords:
    """The tail of what a child says. Not thread-safe."""

    def __init__(self, textless: re.Pattern[bytes], dull: re.Pattern[bytes] = _NOTHING) -> None:
        """From their start, `textless` matches lines that cannot quote a request, `dull` those that explain nothing."""
        self._textless = textless
        self._dull = dull
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._partial = b""
        self._serving = False

    def begin(self) -> None:
        """A new child speaks. What the one before said stays: it tells why there is a new one."""
        self._partial = b""
        self._serving = False

    def serving(self) -> None:
        """The model is loaded: requests may come, so only lines that cannot hold their text are kept from now on."""
        self._serving = True

    def feed(self, data: bytes) -> None:
        """More of it, cut anywhere."""
        *whole, rest = (self._partial + data).split(b"\n")
        self._partial = rest[:_LINE_BYTES]  # what is beyond it is lost, not the next line
        for line in whole:
            worth_it = line.strip() and not self._dull.match(line)
            if worth_it and (not self._serving or self._textless.match(line)):
                self._lines.append(line[:_LINE_BYTES].decode("utf-8", "replace"))

    def note(self, line: str) -> None:
        """A line of our own, such as how the child ended."""
        self._lines.append(line)

    def tail(self, lines: int = 6) -> str:
        """The last so many lines, joined by `; `, without time stamps."""
        return "; ".join(_STAMP.sub("", line) for line in list(self._lines)[-lines:])
