"""Requests with the hashes of their prompt's blocks: JSON lines as Mooncake and agent traces have them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.errors import BadInput
from nightfill.kv.key import BlockKey
from nightfill.simulate.trace import lines

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_TOKENS: Final = 512
"""Of traces that count in tokens."""
_BLOCK_CHARS: Final = 256
"""Of traces that count in characters; four of them count as a token."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `blocks` are those of its prompt, first to last, none twice."""

    at_s: float
    tokens: int
    """Of the prompt, at least 1."""
    blocks: tuple[BlockKey, ...]
    partial: bool
    """Whether the last block is not full: only the very same prompt can use it again."""


@dataclass(frozen=True, slots=True)
class BlockTrace:
    """Requests in the order of their arrival. A block has the same blocks before it wherever it occurs."""

    requests: tuple[Request, ...]
    block_tokens: int

    @property
    def prompt_tokens(self) -> int:
        """Of all requests."""
        return sum(request.tokens for request in self.requests)

    @property
    def prompt_blocks(self) -> int:
        """Of all requests, partial ones included."""
        return sum(len(request.blocks) for request in self.requests)


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    hash_ids: list[int]
    input_chars: int | None = None


def read_blocks(path: Path) -> BlockTrace:
    """Read a trace; requests of the same time keep the order of their lines.

    A block has 512 tokens, or 64 where the lines count in characters (`input_chars`). Raises BadInput, which names file
    and line, for anything else, so also when one hash stands for two prefixes.
    """
    requests: list[Request] = []
    before: dict[int, int | None] = {}
    block_tokens = 0
    decoder = msgspec.json.Decoder(_Line)
    with lines(path) as found:
        for number, text in enumerate(found, start=1):
            try:
                line = decoder.decode(text)
                block_tokens = block_tokens or (_BLOCK_TOKENS if line.input_chars is None else _BLOCK_CHARS // 4)
                requests.append(_request(line, block_tokens, before))
            except (msgspec.MsgspecError, ValueError, OverflowError) as exc:
                raise BadInput(f"{path}, line {number}: no request with blocks: {exc}", param="file") from exc
    if not requests:
        raise BadInput(f"{path} holds no requests", param="file")
    requests.sort(key=lambda request: request.at_s)
    return BlockTrace(tuple(requests), block_tokens)


def _request(line: _Line, block_tokens: int, before: dict[int, int | None]) -> Request:
    ids = line.hash_ids
    full = len(ids) * block_tokens
    if not 0 <= line.timestamp < math.inf:
        raise ValueError(f"its time, {line.timestamp:g} ms, is before the trace begins, or never")
    if not 0 < line.input_length <= full:
        raise ValueError(f"{line.input_length} tokens do not fit its {len(ids)} blocks of {block_tokens}")
    if len(set(ids)) < len(ids):
        raise ValueError("a block occurs twice")
    for parent, block in zip([None, *ids], ids, strict=False):
        if before.setdefault(block, parent) != parent:
            raise ValueError(f"block {block} follows another prefix than it did earlier")
    return Request(
        at_s=line.timestamp / 1000,
        tokens=line.input_length,
        blocks=tuple(BlockKey(block.to_bytes(32, "big")) for block in ids),
        partial=line.input_length < full,
    )
