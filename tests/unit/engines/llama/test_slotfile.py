from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightfill.engines.llama import slotfile
from nightfill.engines.llama.slotfile import Layer, Layout
from nightfill.errors import BlockCorrupt, SlotFileUnknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

F16, Q8_0 = 1, 8
EVEN = Layout(4, 0, 0, (Layer(F16, 8, F16, 8),) * 3)
# Wider values than keys, one layer unlike the others, and rotated keys, as with a quantised cache.
UNEVEN = Layout(4, 64, 0, (Layer(Q8_0, 34, F16, 6), Layer(F16, 8, F16, 6), Layer(F16, 8, F16, 10)))


def rows_of(layout: Layout, n_tokens: int) -> list[np.ndarray]:
    """Per section, one row for each token in the text's order; no two bytes patterns alike by chance."""
    rng = np.random.default_rng(n_tokens)
    return [rng.integers(0, 256, (n_tokens, row_bytes), np.uint8) for _, row_bytes in layout.sections]


def slot_file(
    layout: Layout,
    tokens: Sequence[int],
    *,
    cells: Sequence[int] | None = None,
    streams: int = 1,
    v_trans: int = 0,
    per_cell: int = 1,
    version: int = 4,
    media: int = 0,
    tail: bytes = b"",
) -> bytes:
    """A slot file written by the book, independent of the code under test. `cells` is the position in each cell."""
    cells = range(len(tokens)) if cells is None else cells
    packed = (-1, 1, len(tokens), *tokens, media)
    out = [struct.pack(f"<III{len(packed)}i", 0x67677371, version, len(packed), *packed)]
    out.append(struct.pack("<II", streams, len(cells)))
    out += [struct.pack("<iIi", position, per_cell, 3) for position in cells]
    out.append(struct.pack("<4I", v_trans, len(layout.layers), layout.rot_k, layout.rot_v))
    for (kind, row_bytes), rows in zip(layout.sections, rows_of(layout, len(tokens)), strict=True):
        out.append(struct.pack("<iQ", kind, row_bytes) + rows[list(cells)].tobytes())
    return b"".join(out) + tail


def payload(layout: Layout, n_tokens: int, start: int, stop: int) -> bytes:
    return b"".join(rows[start:stop].tobytes() for rows in rows_of(layout, n_tokens))


def pieces_of(file: slotfile.SlotFile, stops: Iterable[int]) -> list[tuple[int, int, memoryview]]:
    pieces, start = [], 0
    for stop in stops:
        pieces.append((start, stop, memoryview(b"".join(file.cut(start, stop)))))
        start = stop
    return pieces


def assembled(layout: Layout, tokens: Sequence[int], pieces: list[tuple[int, int, memoryview]]) -> bytes:
    out = bytearray(slotfile.assembled_bytes(layout, len(tokens)))
    slotfile.assemble(memoryview(out), layout, tokens, pieces)
    return bytes(out)


@pytest.mark.parametrize("layout", [EVEN, UNEVEN])
def test_a_slot_file_tells_its_tokens_and_layout(layout: Layout) -> None:
    file = slotfile.parse(memoryview(slot_file(layout, range(10, 17))))
    assert file.tokens == tuple(range(10, 17))
    assert file.layout == layout
    assert file.layout.bytes_per_token == sum(row_bytes for _, row_bytes in layout.sections)


@pytest.mark.parametrize("layout", [EVEN, UNEVEN])
@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 1), (2, 5), (6, 7)])
def test_a_cut_holds_the_rows_of_its_tokens_layer_by_layer(layout: Layout, start: int, stop: int) -> None:
    file = slotfile.parse(memoryview(slot_file(layout, range(7))))
    views = file.cut(start, stop)
    assert b"".join(views) == payload(layout, 7, start, stop)
    assert sum(view.nbytes for view in views) == (stop - start) * layout.bytes_per_token


def test_a_cut_refers_to_the_file_and_copies_nothing() -> None:
    raw = bytearray(slot_file(EVEN, range(7)))
    view = slotfile.parse(memoryview(raw)).cut(0, 1)[0]
    before = bytes(view)
    for index in range(len(raw)):
        raw[index] ^= 0xFF
    assert bytes(view) == bytes(byte ^ 0xFF for byte in before)


@pytest.mark.parametrize("cells", [(4, 5, 6, 0, 1, 2, 3), (6, 5, 4, 3, 2, 1, 0), (0, 2, 1, 3, 6, 4, 5)])
def test_cells_in_another_order_than_positions_are_put_in_order(cells: tuple[int, ...]) -> None:
    # A unified cache gave a growing sequence the cells that others had left: the file's first cell held position 130.
    file = slotfile.parse(memoryview(slot_file(UNEVEN, range(7), cells=cells)))
    for start in range(7):
        for stop in range(start + 1, 8):
            assert b"".join(file.cut(start, stop)) == payload(UNEVEN, 7, start, stop)


@pytest.mark.parametrize("layout", [EVEN, UNEVEN])
@pytest.mark.parametrize("stops", [[1, 9, 20], [20], list(range(1, 21))])
def test_cut_and_assembled_again_it_is_the_same_file_but_for_the_slot_number(layout: Layout, stops: list[int]) -> None:
    raw = slot_file(layout, range(20))
    file = slotfile.parse(memoryview(raw))
    again = assembled(layout, file.tokens, pieces_of(file, stops))
    cells_at = 12 + 4 * 24 + 8
    for cell in range(20):
        assert struct.unpack_from("<iIi", again, cells_at + 12 * cell) == (cell, 1, 0)
    assert again[:cells_at] == raw[:cells_at]
    assert again[cells_at + 12 * 20 :] == raw[cells_at + 12 * 20 :]


@pytest.mark.parametrize("layout", [EVEN, UNEVEN])
def test_a_prefix_assembled_from_pieces_is_the_file_that_a_shorter_text_would_have(layout: Layout) -> None:
    file = slotfile.parse(memoryview(slot_file(layout, range(20))))
    short = slotfile.parse(memoryview(assembled(layout, range(13), pieces_of(file, [8, 13]))))
    assert short.tokens == tuple(range(13))
    assert b"".join(short.cut(0, 13)) == payload(layout, 20, 0, 13)


@pytest.mark.parametrize("layout", [EVEN, UNEVEN])
@pytest.mark.parametrize("old", [b"", b"x" * 100_000])
def test_writing_to_a_file_gives_the_assembled_bytes_whatever_stood_there(
    layout: Layout, old: bytes, tmp_path: Path
) -> None:
    file = slotfile.parse(memoryview(slot_file(layout, range(600))))
    pieces = pieces_of(file, range(1, 601))  # more buffers than one system call takes
    path = tmp_path / "slot"
    path.write_bytes(old)
    fd = os.open(path, os.O_RDWR)
    try:
        length = slotfile.write(fd, layout, file.tokens, pieces)
    finally:
        os.close(fd)
    assert path.read_bytes() == assembled(layout, file.tokens, pieces)
    assert length == path.stat().st_size


def test_short_writes_are_continued_where_they_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = slotfile.parse(memoryview(slot_file(UNEVEN, range(50))))
    pieces = pieces_of(file, range(10, 51, 10))
    pwrite = os.pwrite

    def seven_bytes(fd: int, buffers: Sequence[bytes], offset: int) -> int:
        return pwrite(fd, b"".join(buffers)[:7], offset)

    monkeypatch.setattr(os, "pwritev", seven_bytes)
    with (tmp_path / "slot").open("w+b") as out:
        slotfile.write(out.fileno(), UNEVEN, file.tokens, pieces)
    assert (tmp_path / "slot").read_bytes() == assembled(UNEVEN, file.tokens, pieces)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_payload_of_another_length_is_corrupt(change: int, tmp_path: Path) -> None:
    file = slotfile.parse(memoryview(slot_file(EVEN, range(8))))
    good, (start, stop, bad) = pieces_of(file, [4, 8])
    pieces = [good, (start, stop, memoryview(bytes(bad.nbytes + change)))]
    with pytest.raises(BlockCorrupt, match="tokens 4 to 8"):
        assembled(EVEN, file.tokens, pieces)
    with (tmp_path / "slot").open("w+b") as out, pytest.raises(BlockCorrupt):
        slotfile.write(out.fileno(), EVEN, file.tokens, pieces)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "ends within its magic"),
        (b"GGUF" + bytes(100), "wrong magic"),
        (slot_file(EVEN, range(5), version=3), "version 3"),
        (slot_file(EVEN, ()), "empty"),
        (slot_file(EVEN, range(5), media=1), "not of text alone"),
        (slot_file(EVEN, (1, -1, 2)), "negative"),
        (slot_file(EVEN, range(5), streams=2), "ends within its streams"),
        (slot_file(EVEN, range(5), streams=2, tail=struct.pack("<I", 5)), "several streams"),
        (slot_file(EVEN, range(5), streams=0), "0 streams"),
        (slot_file(EVEN, range(5), streams=1000), "1000 streams"),
        (slot_file(EVEN, range(5), cells=range(4)), "4 cells for 5 tokens"),
        (slot_file(EVEN, range(5), cells=(0, 1, 2, 3, 3)), "positions"),
        (slot_file(EVEN, range(5), per_cell=2), "several"),
        (slot_file(EVEN, range(5), v_trans=1), "transposed"),
        (slot_file(EVEN, range(5), tail=b"SCKP" + bytes(60)), "64 bytes follow"),
        (slot_file(Layout(4, 0, 0, (Layer(F16, 0, F16, 8),)), range(5)), "0 bytes"),
        (slot_file(Layout(4, 0, 0, ()), range(5)), "0 layers"),
    ],
)
def test_anything_but_plain_attention_is_refused_with_the_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(SlotFileUnknown, match=reason):
        slotfile.parse(memoryview(raw))


def test_positions_that_do_not_start_at_0_are_refused() -> None:
    raw = bytearray(slot_file(EVEN, range(5)))
    for cell in range(5):
        struct.pack_into("<i", raw, 12 + 4 * 9 + 8 + 12 * cell, cell + 1)
    with pytest.raises(SlotFileUnknown, match="positions"):
        slotfile.parse(memoryview(raw))


@pytest.mark.parametrize("layout", [EVEN, UNEVEN])
def test_every_truncation_is_refused(layout: Layout) -> None:
    raw = slot_file(layout, range(6))
    for length in range(len(raw)):
        with pytest.raises(SlotFileUnknown):
            slotfile.parse(memoryview(raw)[:length])


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_can_be_cut_but_raise_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(slot_file(UNEVEN, range(9)))
    head = 12 + 4 * 13 + 8 + 12 * 9 + 16 + 12  # all but rows, where most changes would be without effect
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, head - 4))
        value = data.draw(st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1)))
        struct.pack_into("<I", raw, at, value)
    cut = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    try:
        file = slotfile.parse(memoryview(raw)[:cut])
    except SlotFileUnknown:
        return
    n_tokens = len(file.tokens)
    assert sum(view.nbytes for view in file.cut(0, n_tokens)) == n_tokens * file.layout.bytes_per_token


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_noise_is_refused(noise: bytes, head: bool) -> None:
    raw = struct.pack("<II", 0x67677371, 4) + noise if head else noise
    with pytest.raises(SlotFileUnknown):
        slotfile.parse(memoryview(raw))


LAYERS = st.builds(Layer, *(st.integers(0, 40), st.integers(1, 1 << 24)) * 2)
LAYOUTS = st.builds(
    Layout, st.just(4), st.integers(0, 512), st.integers(0, 512), st.lists(LAYERS, min_size=1, max_size=40).map(tuple)
)


@given(LAYOUTS)
def test_a_layout_survives_encoding(layout: Layout) -> None:
    assert Layout.decode(layout.encode()) == layout


def test_the_largest_layouts_encode_to_few_bytes() -> None:
    same = Layout(4, 0, 0, (Layer(F16, 2048, F16, 2048),) * 128)
    alternating = Layout(4, 0, 0, (Layer(F16, 2048, F16, 2048), Layer(Q8_0, 1088, F16, 512)) * 64)
    different = Layout(4, 128, 128, tuple(Layer(F16, (1 << 24) - n, Q8_0, (1 << 24) - 2 * n) for n in range(128)))
    assert len(same.encode()) < 40
    assert len(alternating.encode()) < 512
    assert len(different.encode()) <= 3072
    for layout in (same, alternating, different):
        assert Layout.decode(layout.encode()) == layout


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=80), LAYOUTS.map(Layout.encode)), st.data())
def test_a_damaged_layout_is_refused_or_is_a_layout(raw: bytes, data: st.DataObject) -> None:
    damaged = bytearray(raw)
    if damaged:
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        layout = Layout.decode(bytes(damaged))
    except SlotFileUnknown:
        return
    assert layout.bytes_per_token > 0
    assert len(layout.layers) <= slotfile.MAX_LAYERS


@pytest.mark.parametrize(
    ("kinds", "runs", "reason"),
    [
        ([[1, 8, 1, 8]], [[0, 1 << 60]], "more than"),
        ([[1, 8, 1, 8]], [[1, 3]], "does not describe"),
        ([[1, 8, 1, 8]], [[0, -1]], "does not describe"),
        ([[1, 8, 1, 8]], [], "0 layers"),
        ([[1, 1 << 40, 1, 8]], [[0, 3]], "bytes"),
    ],
)
def test_a_hostile_layout_is_refused_before_it_costs_memory(
    kinds: list[list[int]], runs: list[list[int]], reason: str
) -> None:
    import msgspec

    with pytest.raises(SlotFileUnknown, match=reason):
        Layout.decode(msgspec.msgpack.encode([1, 4, 0, 0, kinds, runs]))


@pytest.mark.parametrize("own", [0, 1, 2])
def test_of_several_streams_the_one_that_holds_something_is_read(own: int) -> None:
    """A server whose slots have cells of their own writes one stream for each; only the saved slot's holds anything."""
    tokens = range(7)
    single = slot_file(EVEN, tokens)
    at = 12 + 4 * (len(tokens) + 4)
    raw = single[:at] + struct.pack("<I", 3) + bytes(4 * own) + single[at + 4 :] + bytes(4 * (2 - own))
    file = slotfile.parse(memoryview(raw))
    assert file.tokens == tuple(tokens)
    assert b"".join(file.cut(2, 6)) == payload(EVEN, 7, 2, 6)


@pytest.mark.parametrize("layout", [EVEN, UNEVEN])
def test_a_file_for_several_streams_has_everything_in_the_first(layout: Layout, tmp_path: Path) -> None:
    tokens = range(9)
    file = slotfile.parse(memoryview(slot_file(layout, tokens)))
    pieces = pieces_of(file, (4, 9))
    out = bytearray(slotfile.assembled_bytes(layout, 9, streams=4))
    slotfile.assemble(memoryview(out), layout, tokens, pieces, streams=4)
    with (tmp_path / "file").open("wb") as target:
        slotfile.write(target.fileno(), layout, tokens, pieces, streams=4)
    assert (tmp_path / "file").read_bytes() == out
    alone = assembled(layout, tokens, pieces)
    at = 12 + 4 * (len(tokens) + 4)
    assert bytes(out) == alone[:at] + struct.pack("<I", 4) + alone[at + 4 :] + bytes(12)
    assert slotfile.parse(memoryview(out)).tokens == tuple(tokens)
