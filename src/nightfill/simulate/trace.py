"""Trace files: which kind one is, and its lines."""

from __future__ import annotations

import enum
import gzip
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from nightfill.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GZIP: Final = b"\x1f\x8b"


class Kind(enum.StrEnum):
    """What a trace holds, and so what can be simulated with it."""

    RATES = "rates"
    """Request rates of clients: which contexts to keep filled."""
    BLOCKS = "blocks"
    """Requests with the hashes of their prompt's blocks: which blocks to keep."""


@contextmanager
def lines(path: Path) -> Iterator[Iterator[str]]:
    """The lines of a text file, plain or compressed by gzip, without their ends.

    Raises BadInput, also while they are read, when the file cannot be read or is no text.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == _GZIP
        with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
            yield (line.rstrip("\r\n") for line in file)
    except (OSError, EOFError, zlib.error) as exc:
        raise BadInput(f"cannot read {path}: {exc}", param="file") from exc
    except UnicodeDecodeError as exc:
        raise BadInput(f"{path} is no text: {exc}", param="file") from exc


def kind_of(path: Path) -> Kind:
    """By its first line. Raises BadInput for anything that is neither."""
    with lines(path) as found:
        first = next(found, "")
    if {"client", "t_s", "rate_rps"} <= set(first.split(",")):
        return Kind.RATES
    if first.startswith("{") and '"hash_ids"' in first:
        return Kind.BLOCKS
    raise BadInput(
        f"{path} is no trace: neither a CSV file with client, t_s and rate_rps, nor JSON lines with hash_ids",
        param="file",
    )
