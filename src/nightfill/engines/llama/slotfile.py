"""llama.cpp slot files: read one, cut it into the KV of token ranges, and build one from such pieces.

A slot file (`POST /slots/0?action=save`) holds the KV of one sequence. All of it is little-endian and packed:

    u32 magic 'ggsq' = 0x67677371, u32 version = 4
    u32 n_packed, i32 packed[]          -1, 1, n, then n token ids, then 0 (the number of media chunks)
    u32 n_stream                        one, where the server runs with kv_unified; else one for each of its slots
    a stream that holds nothing is u32 0; those before the slot's own stand here, those after it at the end
    u32 n, n x (i32 position, u32 1, i32 sequence)      one cell per token, in the order they lie in the cache
    u32 v_trans = 0, u32 n_layer, u32 n_rot_k, u32 n_rot_v
    per layer, K: i32 ggml_type, u64 row_bytes, n rows
    per layer, V: i32 ggml_type, u64 row_bytes, n rows

A row is one token's K (or V) of one layer; a key is stored rotated to its absolute position. So the rows of tokens `a`
to `b` depend on tokens 0 to `b` and on nothing else, and may be put back wherever the same tokens stand in front.

Cells need not be in the order of positions: a unified cache gives a growing sequence whatever cells others have left.
A file may also end with context checkpoints ('SCKP': sliding window, recurrent state); such a file cannot be cut, nor
can any other that differs from the above in anything. It raises SlotFileUnknown, and callers keep it whole.

Nothing in a slot file says which model, adapter or rope setting made it, and nothing in it is checksummed. Both is the
business of whoever keeps the pieces.

Restore whole files only: given one that is cut short, llama.cpp fails an assertion, and its process ends.
"""

from __future__ import annotations

import itertools
import os
import struct
import sys
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import numpy as np

from nightfill.errors import BlockCorrupt, SlotFileUnknown

if TYPE_CHECKING:
    from collections.abc import Sequence

assert sys.byteorder == "little", "slot files are copied as they are, and ours are little-endian"

MAGIC: Final = 0x67677371
VERSION: Final = 4
MAX_LAYERS: Final = 1024
MAX_STREAMS: Final = 256
MAX_ROW_BYTES: Final = 1 << 24
_LAYOUT_FORM: Final = 1
_CELL_BYTES: Final = 12
_SECTION: Final = struct.Struct("<iQ")
_FOUR: Final = struct.Struct("<4I")
_U32: Final = struct.Struct("<I")
_IOV_MAX: Final = 1024
"""Buffers that one pwritev takes, on Linux."""


def _unknown(reason: str) -> NoReturn:
    raise SlotFileUnknown(f"slot file: {reason}")


class Layer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Shape of one layer's cache: ggml type numbers, and bytes per token (1 to 16 MiB)."""

    k_type: int
    k_row_bytes: int
    v_type: int
    v_row_bytes: int


class Layout(msgspec.Struct, frozen=True):
    """All that a slot file says beside tokens and KV. Equal layouts: pieces may be mixed. Hashable."""

    version: int
    rot_k: int
    """Size of the Hadamard rotation that quantised keys went through; 0 for none."""
    rot_v: int
    layers: tuple[Layer, ...]

    @property
    def bytes_per_token(self) -> int:
        """KV bytes of one token, over all layers."""
        return sum(layer.k_row_bytes + layer.v_row_bytes for layer in self.layers)

    @property
    def sections(self) -> tuple[tuple[int, int], ...]:
        """(ggml type, row bytes) of each run of rows in a file or payload: K of every layer, then V of every layer."""
        keys = tuple((layer.k_type, layer.k_row_bytes) for layer in self.layers)
        return keys + tuple((layer.v_type, layer.v_row_bytes) for layer in self.layers)

    def encode(self) -> bytes:
        """As bytes: some 30 where all layers are alike, under 3 KB for 128 layers that all differ."""
        kinds = tuple(dict.fromkeys(self.layers))
        number = {kind: index for index, kind in enumerate(kinds)}
        runs = tuple((number[kind], len(tuple(same))) for kind, same in itertools.groupby(self.layers))
        return msgspec.msgpack.encode(
            _PackedLayout(_LAYOUT_FORM, self.version, self.rot_k, self.rot_v, kinds=kinds, runs=runs)
        )

    @classmethod
    def decode(cls, raw: bytes) -> Layout:
        """The inverse of `encode`. Raises SlotFileUnknown for anything that `encode` cannot have made."""
        try:
            packed = msgspec.msgpack.decode(raw, type=_PackedLayout)
        except msgspec.DecodeError as exc:
            raise SlotFileUnknown(f"slot file: not a layout of ours: {exc}") from exc
        if packed.form != _LAYOUT_FORM:
            _unknown(f"layout of form {packed.form}, known is {_LAYOUT_FORM}")
        if sum(count for _, count in packed.runs) > MAX_LAYERS:
            _unknown(f"layout with more than {MAX_LAYERS} layers")
        if any(count < 1 or not 0 <= kind < len(packed.kinds) for kind, count in packed.runs):
            _unknown("layout names a kind of layer that it does not describe")
        layers = tuple(packed.kinds[kind] for kind, count in packed.runs for _ in range(count))
        layout = cls(packed.version, packed.rot_k, packed.rot_v, layers)
        _check_layout(layout)
        return layout


class _PackedLayout(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    form: int
    version: int
    rot_k: int
    rot_v: int
    kinds: tuple[Layer, ...]
    runs: tuple[tuple[int, int], ...]
    """(index into `kinds`, number of layers)."""


def _check_layout(layout: Layout) -> None:
    if layout.version != VERSION:
        _unknown(f"version {layout.version}, known is {VERSION}")
    if not 1 <= len(layout.layers) <= MAX_LAYERS:
        _unknown(f"{len(layout.layers)} layers, allowed are 1 to {MAX_LAYERS}")
    if not (0 <= layout.rot_k < 1 << 32 and 0 <= layout.rot_v < 1 << 32):
        _unknown(f"rotations of {layout.rot_k} and {layout.rot_v}")
    for kind, row_bytes in layout.sections:
        if not (0 <= kind < 1 << 31 and 1 <= row_bytes <= MAX_ROW_BYTES):
            _unknown(f"rows of type {kind} and {row_bytes} bytes")


@dataclass(frozen=True, slots=True)
class _Run:
    """Positions `start` to `stop` lie in consecutive cells, the first of them in `cell`."""

    start: int
    stop: int
    cell: int


@dataclass(frozen=True, slots=True)
class SlotFile:
    """A slot file that can be cut. It refers to the buffer that it was parsed from; keep that open and unchanged."""

    tokens: tuple[int, ...]
    layout: Layout
    _view: memoryview
    _sections: tuple[tuple[int, int], ...]
    """(offset of the first row, row bytes), K of every layer, then V of every layer."""
    _runs: tuple[_Run, ...]

    def cut(self, start: int, stop: int) -> list[memoryview]:
        """KV of tokens `start` to `stop`: one payload, in pieces that are views of the file, to be written one after
        the other. Their sum is `(stop - start) * layout.bytes_per_token`.

        The payload is K of every layer, then V of every layer; within each, one row per token in the text's order.
        """
        assert 0 <= start < stop <= len(self.tokens), (start, stop, len(self.tokens))
        runs = [
            (run.cell + max(start, run.start) - run.start, min(stop, run.stop) - max(start, run.start))
            for run in self._runs
            if run.start < stop and start < run.stop
        ]
        return [
            self._view[rows + cell * row_bytes : rows + (cell + count) * row_bytes]
            for rows, row_bytes in self._sections
            for cell, count in runs
        ]


class _Reader:
    """Reads forward through a buffer; what is not there raises SlotFileUnknown."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.at = 0

    def skip(self, count: int, what: str) -> int:
        """Pass over `count` bytes; the offset of the first."""
        start = self.at
        if count > len(self.view) - start:
            _unknown(f"ends within {what}")
        self.at = start + count
        return start

    def u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self.view, self.skip(4, what))[0]
        return value


def parse(view: memoryview) -> SlotFile:
    """Read a whole slot file (`view` is flat bytes, such as of an mmap). Copies no KV.

    Raises SlotFileUnknown, with the reason, for any file that cannot be cut, is truncated, or is no slot file.
    """
    reader = _Reader(view.cast("B"))
    if reader.u32("its magic") != MAGIC:
        _unknown("wrong magic")
    version = reader.u32("its version")
    if version != VERSION:
        _unknown(f"version {version}, known is {VERSION}")
    tokens = _tokens(reader)
    n_cells, empty_after = _stream(reader)
    runs = _runs(reader, n_cells, len(tokens))
    v_trans, n_layer, rot_k, rot_v = _FOUR.unpack_from(reader.view, reader.skip(_FOUR.size, "its shape"))
    if v_trans != 0:
        _unknown("values are transposed (flash attention is off)")
    if not 1 <= n_layer <= MAX_LAYERS:
        _unknown(f"{n_layer} layers, allowed are 1 to {MAX_LAYERS}")
    keys = [_section(reader, len(tokens)) for _ in range(n_layer)]
    values = [_section(reader, len(tokens)) for _ in range(n_layer)]
    for _ in range(empty_after):
        if reader.u32("its streams") != 0:
            _unknown("several streams hold something")
    if reader.at != len(reader.view):
        _unknown(f"{len(reader.view) - reader.at} bytes follow the last layer (checkpoints or another kind of state)")
    layers = tuple(Layer(k[0], k[2], v[0], v[2]) for k, v in zip(keys, values, strict=True))
    layout = Layout(version, rot_k, rot_v, layers)
    _check_layout(layout)
    sections = tuple((offset, row_bytes) for _, offset, row_bytes in itertools.chain(keys, values))
    return SlotFile(tokens, layout, reader.view, sections, runs)


def _tokens(reader: _Reader) -> tuple[int, ...]:
    n_packed = reader.u32("its token list")
    start = reader.skip(4 * n_packed, "its token list")
    packed = array("i", bytes(reader.view[start : reader.at]))
    if n_packed < 5 or packed[0] != -1 or packed[1] != 1 or packed[2] != n_packed - 4 or packed[-1] != 0:
        _unknown("its token list is empty, or not of text alone")
    tokens = tuple(packed[3:-1])
    if min(tokens) < 0:
        _unknown("a token id is negative")
    return tokens


def _stream(reader: _Reader) -> tuple[int, int]:
    """(cells of the stream that holds something, number of empty streams at the end); reads up to its first cell."""
    n_stream = reader.u32("its streams")
    if not 1 <= n_stream <= MAX_STREAMS:
        _unknown(f"{n_stream} streams, allowed are 1 to {MAX_STREAMS}")
    for index in range(n_stream):
        n_cells = reader.u32("its cells")
        if n_cells:
            return n_cells, n_stream - index - 1
    return 0, 0


def _runs(reader: _Reader, n_cells: int, n_tokens: int) -> tuple[_Run, ...]:
    """Where each position lies; checks that positions are 0 to n - 1, each once."""
    if n_cells != n_tokens:
        _unknown(f"{n_cells} cells for {n_tokens} tokens")
    start = reader.skip(_CELL_BYTES * n_cells, "its cells")
    cells = np.frombuffer(reader.view, dtype="<i4", count=3 * n_cells, offset=start).reshape(n_cells, 3)
    if not (cells[:, 1] == 1).all():
        _unknown("a cell belongs to no sequence or to several")
    positions = cells[:, 0].astype(np.int64)
    order = np.argsort(positions, kind="stable")
    if not np.array_equal(positions[order], np.arange(n_cells)):
        _unknown("its positions are not 0 to n - 1, each once")
    breaks = [0, *(np.flatnonzero(np.diff(order) != 1) + 1).tolist(), n_cells]
    return tuple(_Run(a, b, int(order[a])) for a, b in itertools.pairwise(breaks))


def _section(reader: _Reader, n_tokens: int) -> tuple[int, int, int]:
    """(ggml type, offset of the first row, row bytes)."""
    kind, row_bytes = _SECTION.unpack_from(reader.view, reader.skip(_SECTION.size, "a layer's header"))
    return kind, reader.skip(row_bytes * n_tokens, "a layer's rows"), row_bytes


def assembled_bytes(layout: Layout, n_tokens: int, *, streams: int = 1) -> int:
    """Size of the slot file that `assemble` writes."""
    rows = len(layout.sections) * _SECTION.size + n_tokens * layout.bytes_per_token
    return _rows_at(n_tokens) + rows + len(_tail(streams))


def _rows_at(n_tokens: int) -> int:
    """Offset of the first layer."""
    return 12 + 4 * (n_tokens + 4) + 8 + _CELL_BYTES * n_tokens + _FOUR.size


def assemble(
    out: memoryview,
    layout: Layout,
    tokens: Sequence[int],
    pieces: Sequence[tuple[int, int, memoryview]],
    *,
    streams: int = 1,
) -> None:
    """Write the slot file of `tokens` into `out`, a writable flat view of exactly `assembled_bytes` bytes.

    `streams` is that of the server that is to restore it, into whichever slot.
    `pieces` are (start, stop, payload as made by `SlotFile.cut`), in order, without gaps, from 0 to `len(tokens)`.
    Raises BlockCorrupt when a payload's length does not fit its range; `out` is then as it was. The interpreter lock
    is free while rows are copied, so run it in a thread.
    """
    n_tokens = len(tokens)
    assert out.nbytes == assembled_bytes(layout, n_tokens, streams=streams), "out has another size than the file"
    _check_pieces(layout, n_tokens, pieces)
    section_at = _rows_at(n_tokens)
    out[:section_at] = _head(layout, tokens, streams)
    payload_at = 0  # bytes per token that earlier sections take in a payload
    # Neighbouring sections with equal rows lie at equal distances, in the file and in a payload: one strided copy moves
    # a piece into all of them. In most models that is one copy for everything.
    for row_bytes, group in itertools.groupby(layout.sections, key=lambda section: section[1]):
        kinds = [kind for kind, _ in group]
        stride = _SECTION.size + n_tokens * row_bytes
        for index, kind in enumerate(kinds):
            _SECTION.pack_into(out, section_at + index * stride, kind, row_bytes)
        for start, stop, payload in pieces:
            span = (stop - start) * row_bytes
            source = np.ndarray((len(kinds), span), np.uint8, payload, payload_at * (stop - start))
            target = np.ndarray(
                (len(kinds), span), np.uint8, out, section_at + _SECTION.size + start * row_bytes, (stride, 1)
            )
            np.copyto(target, source)
        section_at += len(kinds) * stride
        payload_at += len(kinds) * row_bytes
    tail = _tail(streams)
    assert section_at + len(tail) == out.nbytes
    out[section_at:] = tail


def write(
    fd: int,
    layout: Layout,
    tokens: Sequence[int],
    pieces: Sequence[tuple[int, int, memoryview]],
    *,
    streams: int = 1,
) -> int:
    """Write the slot file of `tokens` over the file `fd`, cut it to that length, and return the length in bytes.

    `pieces` and `streams` as for `assemble`. A file that is written again and again keeps its pages, which is several
    times as fast as a new file, above all in memory (tmpfs): there it is the zeroing of new pages that takes the time.
    Raises BlockCorrupt as `assemble` does, and OSError (disk full); the file is then undefined. The interpreter lock is
    free meanwhile.
    """
    _check_pieces(layout, len(tokens), pieces)
    parts: list[bytes | memoryview] = [_head(layout, tokens, streams)]
    payload_at = 0
    for kind, row_bytes in layout.sections:
        parts.append(_SECTION.pack(kind, row_bytes))
        parts += [
            payload[payload_at * (stop - start) : (payload_at + row_bytes) * (stop - start)]
            for start, stop, payload in pieces
        ]
        payload_at += row_bytes
    parts.append(_tail(streams))
    at = 0
    for first in range(0, len(parts), _IOV_MAX):
        batch = parts[first : first + _IOV_MAX]
        while batch:
            wrote = os.pwritev(fd, batch, at)
            at += wrote
            while batch and wrote >= len(batch[0]):
                wrote -= len(batch.pop(0))
            if wrote:
                batch[0] = memoryview(batch[0])[wrote:]
    assert at == assembled_bytes(layout, len(tokens), streams=streams)
    os.ftruncate(fd, at)
    return at


def _check_pieces(layout: Layout, n_tokens: int, pieces: Sequence[tuple[int, int, memoryview]]) -> None:
    assert n_tokens > 0
    assert [0, *(stop for _, stop, _ in pieces)] == [*(start for start, _, _ in pieces), n_tokens], "pieces leave gaps"
    for start, stop, payload in pieces:
        assert start < stop
        expected = (stop - start) * layout.bytes_per_token
        if payload.nbytes != expected:
            raise BlockCorrupt(f"KV of tokens {start} to {stop} has {payload.nbytes} bytes, not {expected}")


def _tail(streams: int) -> bytes:
    """All that stands after the last layer: the empty streams. The first holds everything; a server reads the one that
    holds something into the slot it was asked to, whichever that is.
    """
    return bytes(4 * (streams - 1))


def _head(layout: Layout, tokens: Sequence[int], streams: int) -> bytes:
    """All that stands before the first layer."""
    n_tokens = len(tokens)
    packed = array("i", (-1, 1, n_tokens))
    packed.extend(tokens)
    packed.append(0)
    cells = np.empty((n_tokens, 3), dtype="<i4")
    cells[:, 0] = np.arange(n_tokens)
    cells[:, 1] = 1
    cells[:, 2] = 0  # the restoring server writes the slot's own sequence over it
    head = b"".join(
        (
            struct.pack("<III", MAGIC, layout.version, len(packed)),
            packed.tobytes(),
            struct.pack("<II", streams, n_tokens),
            cells.tobytes(),
            _FOUR.pack(0, len(layout.layers), layout.rot_k, layout.rot_v),
        )
    )
    assert len(head) == _rows_at(n_tokens)
    return head
