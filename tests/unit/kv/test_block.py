from __future__ import annotations

import pytest

from fakes.kv import SIGNATURE, Sample
from nightfill.contexts.context import Signature
from nightfill.errors import BlockCorrupt
from nightfill.kv.block import (
    COVERED_BYTES,
    HEADER_BYTES,
    MAX_LAYOUT_BYTES,
    BlockMeta,
    Header,
    Kind,
    SealKind,
    sealed_bytes,
)

SAMPLE = Sample(1, 5000)


def header(meta: BlockMeta = SAMPLE.meta) -> Header:
    return Header(
        key=SAMPLE.key, meta=meta, payload_bytes=5000, seal=SealKind.AES_GCM, key_id=b"k" * 8, nonce=b"n" * 12
    )


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
    ("at", "value", "reason"),
    [
        (0, b"ggsq", "first bytes"),
        (8, b"\x02", "format 2"),
        (10, b"\x09", "out of range"),
        (11, b"\x00", "out of range"),
        (12, b"\xff\xff", "layout"),
        (16, b"\xff\xff\xff\xff\xff\xff\xff\xff", "payload"),
        (16, b"\x00\x00", "payload"),
        (24, b"\xff\xff\xff\xff\xff\xff\xff\xff", "out of range"),
        (32, b"\x00" * 8, "out of range"),
    ],
)
def test_garbage_in_a_header_is_corrupt_not_a_crash(at: int, value: bytes, reason: str) -> None:
    packed = bytearray(header().pack())
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
    ("payload", "stored_bytes"), [(0, 4096), (1, 8192), (4096, 8192), (4097, 12288), (64 << 20, (64 << 20) + 4096)]
)
def test_stored_length_is_whole_pages(payload: int, stored_bytes: int) -> None:
    assert sealed_bytes(payload) == stored_bytes
