"""Logs of requests, line by line: OpenAI requests, bare or wrapped, and traces of block hashes.

Tolerant: a line that is none of these is told as such, with its number, and reading goes on.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.contexts.context import DEFAULT_TENANT, Tenant
from nightfill.contexts.discovery_prompt import Prompt, prompt_of
from nightfill.contexts.names import parse_tenant
from nightfill.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

MAX_LINE_BYTES: Final = 64 << 20
_GZIP: Final = b"\x1f\x8b"
_WRAPPERS: Final = ("request", "body")
_TIMES: Final = ("timestamp", "time", "created")
_LEVELS: Final = 4
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is no request."""

    why: str
    """Holds nothing of its text."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with its text."""

    prompt: Prompt
    tenant: Tenant
    at_s: float | None
    """Unix seconds, or from any other start; None where the line has no time."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A request of a trace: hashes of its prompt's blocks, each standing for all up to it."""

    ids: tuple[int, ...]
    tokens: int
    at_s: float


Line = Asked | Blocks | Bad


def read_log(path: Path, *, advanced: Callable[[int], object] = lambda _: None) -> Iterator[tuple[int, Line]]:
    """The lines of a file with their numbers, from 1; empty ones are left out. Holds one line at a time.

    The file is plain or compressed by gzip. advanced: is told how many of its bytes are read, now and then. Raises
    BadInput when it cannot be read; a damaged archive ends with a `Bad` line.
    """
    try:
        raw = path.open("rb")
    except OSError as exc:
        raise BadInput(f"cannot read {path}: {exc.strerror}", param="file") from exc
    with raw:
        number = 0
        told = raw.tell if raw.seekable() else lambda: 0
        try:
            packed = raw.peek(2)[:2] == _GZIP
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while (line := stream.readline(MAX_LINE_BYTES)) and not line.endswith(b"\n"):
                        pass
                    yield number, Bad(f"longer than {MAX_LINE_BYTES >> 20} MiB")
                elif line.strip():
                    yield number, parse_line(line)
                if number % 64 == 0:
                    advanced(told())
            advanced(told())
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            yield number + 1, Bad(f"the archive is damaged from here on: {exc}")
        except OSError as exc:
            raise BadInput(f"cannot read {path}: {exc.strerror or exc}", param="file") from exc


def parse_line(line: bytes) -> Line:
    """One line of a log. Never raises."""
    try:
        members = _MEMBERS.decode(line)
    except _MALFORMED:
        return Bad("no JSON object")
    if "hash_ids" in members:
        return _blocks(members)
    tenant, at_s = DEFAULT_TENANT, None
    try:
        for _ in range(_LEVELS):
            if "tenant" in members:
                tenant = parse_tenant(msgspec.json.decode(members["tenant"], type=str))
            at_s = next((time for name in _TIMES if (time := time_of(members.get(name))) is not None), at_s)
            if "messages" in members or "prompt" in members:
                break
            inner = next((members[name] for name in _WRAPPERS if name in members), None)
            if inner is None:
                return Bad("has neither messages, prompt nor hash_ids")
            # Some logs keep the body as the text that it came as.
            text = msgspec.json.decode(inner, type=str).encode() if bytes(inner)[:1] == b'"' else inner
            members = _MEMBERS.decode(text)
    except _MALFORMED:
        return Bad("its request is no JSON object, or its tenant no text")
    except BadInput:
        return Bad("its tenant has a name that is not allowed")
    prompt = prompt_of(members)
    if prompt is None:
        return Bad("its messages or prompt are no text")
    return Asked(prompt, tenant, at_s)


def time_of(raw: msgspec.Raw | None) -> float | None:
    """Unix seconds from a number or an ISO date and time, UTC if it does not say; None for anything else.

    Numbers are seconds, milliseconds or microseconds, told apart by size.
    """
    if raw is None:
        return None
    try:
        value = msgspec.json.decode(raw, type=float | str)
        seconds = _seconds(value) if isinstance(value, str) else value
    except (*_MALFORMED, ValueError, OverflowError):
        return None
    if not 0 <= seconds < math.inf:
        return None
    return seconds / (1e6 if seconds > 1e14 else 1e3 if seconds > 1e11 else 1)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def block_tokens_of(requests: Sequence[Blocks]) -> int | None:
    """The size of blocks by which each request's tokens fill its blocks but for the last; None where there is none.

    Of those that would do, the power of two, else the smallest.
    """
    low = max((math.ceil(one.tokens / len(one.ids)) for one in requests), default=0)
    high = min(((one.tokens - 1) // (len(one.ids) - 1) for one in requests if len(one.ids) > 1), default=low)
    if not 0 < low <= high:
        return None
    power = 1 << (low - 1).bit_length()
    return power if power <= high else low


def _blocks(members: Mapping[str, msgspec.Raw]) -> Line:
    try:
        ids = msgspec.json.decode(members["hash_ids"], type=tuple[int, ...])
        tokens = msgspec.json.decode(members.get("input_length", b"0"), type=int)
        at_s = msgspec.json.decode(members.get("timestamp", b"0"), type=float) / 1000
    except _MALFORMED:
        return Bad("its hash_ids, input_length or timestamp are no numbers")
    if not ids or tokens <= 0 or not 0 <= at_s < math.inf:
        return Bad("has no blocks, no tokens or no time")
    return Blocks(ids, tokens, at_s)
