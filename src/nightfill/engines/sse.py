"""Server-sent events: whole events out of a byte stream that is cut anywhere. Pure."""

from __future__ import annotations

import re
from typing import Final

from nightfill.errors import EngineError

_END: Final = re.compile(rb"\r?\n\r?\n")
_LINE: Final = re.compile(rb"\r?\n")
_MAX_EVENT_BYTES: Final = 64 << 20


class EventSplitter:
    """Holds back what is not yet a whole event. Lines end with LF or CR LF: no engine sends a bare CR.

    Not thread-safe. One per stream.
    """

    __slots__ = ("_engine", "_held", "_max_event_bytes")

    def __init__(self, *, engine: str, max_event_bytes: int = _MAX_EVENT_BYTES) -> None:
        self._engine = engine
        self._max_event_bytes = max_event_bytes
        self._held = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """All whole events by now, unchanged and in order; empty if there is none. The rest waits for the next chunk.

        All that is returned, and then `rest`, is what was fed. Raises EngineError when an event exceeds the bound.
        """
        held = self._held
        if not held and chunk.endswith(b"\n\n"):  # what engines do nearly always: nothing is copied
            return chunk
        seam = max(0, len(held) - 2)  # an event's end may lie across the cut
        held += chunk
        end = max(_after(held, b"\n\n", seam), _after(held, b"\n\r\n", seam))
        if not end:
            if len(held) > self._max_event_bytes:
                raise EngineError(f"sent an event of more than {self._max_event_bytes} bytes", engine=self._engine)
            return b""
        whole = bytes(held[:end])
        del held[:end]
        return whole

    @property
    def rest(self) -> bytes:
        """What follows the last whole event: empty at the end of a stream that was not cut short."""
        return bytes(self._held)


def _after(held: bytearray, mark: bytes, seam: int) -> int:
    at = held.rfind(mark, seam)
    return at + len(mark) if at >= 0 else 0


def payloads(events: bytes) -> list[bytes]:
    """The data of each event in a run of whole ones, in order; comments (pings) and other fields are left out."""
    found: list[bytes] = []
    for event in _END.split(events):
        lines = [line[5:].removeprefix(b" ") for line in _LINE.split(event) if line.startswith(b"data:")]
        if lines:
            found.append(b"\n".join(lines))
    return found
