from __future__ import annotations

import dataclasses
import struct

import pytest

from fakes.kv import SIGNATURE, Sample
from nightfill.contexts.context import Signature
from nightfill.errors import BlockCorrupt
from nightfill.kv.block import (
    COVERED_BYTES,
    HEADER_BYTES,
    MAX_LAYOUT_BYTES,
    NO_OWNER,
    BlockMeta,
    Header,
    Kind,
    SealKind,
    owner_in,
    owner_of,
    sealed_bytes,
)

SAMPLE = Sample(1, 5000)


def header(meta: BlockMeta = SAMPLE.meta) -> Header:
    return Header(
        key=SAMPLE.key, meta=meta, payload_bytes=5000, seal=SealKind.AES_GCM, key_id=b"k" * 8, nonce=b"n" * 12
    )


def shaped(dtype: str = "bfloat16", shape: tuple[int, ...] = (2, 16, 8, 128)) -> BlockMeta:
    return dataclasses.replace(SAMPLE.meta, dtype=dtype, shape=shape)


def stored(packed: bytes) -> memoryview:
    return memoryview(packed + bytes(sealed_bytes(5000) - len(packed)))


@pytest.mark.parametrize("kind", ["block", "snapshot"])
@pytest.mark.parametrize("layout", [b"", b"x", bytes(range(256)) * 12])
def test_a_header_comes_back_as_it_was(kind: Kind, layout: bytes) -> None:
    meta = BlockMeta(kind=kind, signature=SIGNATURE, start=7, stop=2**40, layout=layout)
    packed = header(meta).pack()
    assert len(packed) == COVERED_BYTES
    assert Header.parse(stored(packed)) == header(meta)


def test_the_longest_layout_ends_before_the_tag() -> None:
    meta = BlockMeta(kind="block", signature=SIGNATURE, start=0, stop=1, layout=b"\xff" * MAX_LAYOUT_BYTES)
    assert Header.parse(stored(header(meta).pack())).meta == meta


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("", ()), ("bfloat16", (1,)), ("float8_e4m3fn", (0, 2**40)), ("x" * 24, tuple(range(8)))],
)
def test_dtype_and_shape_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    assert Header.parse(stored(header(shaped(dtype, shape)).pack())).meta == shaped(dtype, shape)


def test_a_header_of_the_first_format_is_read() -> None:
    meta = SAMPLE.meta
    packed = struct.pack(
        "<8sHBBIQQQ32s32s8s12s",
        *(b"nf.block", 1, 2, 1, len(meta.layout), 5000, meta.start, meta.stop),
        *(SAMPLE.key, bytes.fromhex(SIGNATURE), b"k" * 8, b"n" * 12),
    )
    assert Header.parse(stored(packed + meta.layout)) == header()
    assert owner_in(stored(packed + meta.layout)) == NO_OWNER


def test_an_owner_is_told_from_the_first_page_and_from_nothing_else() -> None:
    owned = dataclasses.replace(header(), owner=owner_of(b"a"))
    assert owner_in(stored(owned.pack())) == owner_of(b"a") != owner_of(b"b")
    assert len(owner_of(b"a")) == len(NO_OWNER)
    assert Header.parse(stored(owned.pack())).owner == owner_of(b"a")
    assert owner_in(memoryview(b"x" * 4096)) == owner_in(memoryview(b"")) == NO_OWNER


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, b"ggsq", "first bytes"),
        (8, b"\x03", "format 3"),
        (10, b"\x09", "out of range"),
        (11, b"\x00", "out of range"),
        (12, b"\xff\xff", "layout"),
        (16, b"\xff\xff\xff\xff\xff\xff\xff\xff", "payload"),
        (16, b"\x00\x00", "payload"),
        (24, b"\xff\xff\xff\xff\xff\xff\xff\xff", "out of range"),
        (32, b"\x00" * 8, "out of range"),
        (132, b"\xff", "out of range"),
        (132, b"a\0b", "out of range"),
        (156, b"\x09", "dimensions"),
        (160, b"\xff" * 8, "out of range"),
    ],
)
def test_garbage_in_a_header_is_corrupt_not_a_crash(at: int, value: bytes, reason: str) -> None:
    packed = bytearray(header(shaped()).pack())
    packed[at : at + len(value)] = value
    with pytest.raises(BlockCorrupt, match=reason):
        Header.parse(stored(bytes(packed)))


@pytest.mark.parametrize("length", [0, 1, 100, HEADER_BYTES - 1, HEADER_BYTES, sealed_bytes(5000) - 4096])
def test_a_block_of_another_length_is_corrupt(length: int) -> None:
    with pytest.raises(BlockCorrupt):
        Header.parse(stored(header().pack())[:length])


@pytest.mark.parametrize(
    ("start", "stop", "signature", "layout"),
    [
        (-1, 5, SIGNATURE, b""),
        (6, 5, SIGNATURE, b""),
        (0, 5, Signature("5a"), b""),
        (0, 5, Signature("zz" * 32), b""),
        (0, 5, SIGNATURE, bytes(MAX_LAYOUT_BYTES + 1)),
    ],
)
def test_meta_out_of_range_is_refused(start: int, stop: int, signature: Signature, layout: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - five fields, five messages
        BlockMeta(kind="block", signature=signature, start=start, stop=stop, layout=layout)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("x" * 25, ()), ("ä", ()), ("a b", ()), ("", (1,) * 9), ("", (-1,)), ("", (1 << 63,))]
)
def test_a_dtype_or_shape_out_of_range_is_refused(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"dtype|shape"):
        shaped(dtype, shape)


@pytest.mark.parametrize(
    ("payload", "stored_bytes"), [(0, 4096), (1, 8192), (4096, 8192), (4097, 12288), (64 << 20, (64 << 20) + 4096)]
)
def test_stored_length_is_whole_pages(payload: int, stored_bytes: int) -> None:
    assert sealed_bytes(payload) == stored_bytes
