"""Log lines as text or JSON. No prompt, context or answer is ever logged; callers pass names, counts and seconds."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from typing import TextIO

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TIME: Final = "%Y-%m-%dT%H:%M:%S"


class TextFormatter(logging.Formatter):
    """`time level logger: message key=value ...`; extra fields of the record follow the message. UTC."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", _TIME)
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line without a traceback."""
        extra = " ".join(f"{key}={_bare(value)}" for key, value in _extra(record).items())
        line = super().formatMessage(record).replace("\n", "\\n")
        return f"{line} {extra}" if extra else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (Unix seconds), level, logger, message, extra fields, `error` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def formatter(kind: Literal["text", "json"]) -> logging.Formatter:
    """The formatter for a `log_format` setting."""
    return JsonFormatter() if kind == "json" else TextFormatter()


def set_up(
    *, level: Literal["debug", "info", "warning", "error"], kind: Literal["text", "json"], stream: TextIO | None = None
) -> logging.Handler:
    """Send the logs of `nightfill` to `stream` (default: stderr). For the composition root; the root logger stays."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter(kind))
    logger = logging.getLogger("nightfill")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    return handler


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _bare(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if text and not any(c.isspace() or c in '"=' for c in text) else msgspec.json.encode(text).decode()
