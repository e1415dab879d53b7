"""The contract of `Sealer`, kept by every one of them; what only encryption does is in test_cipher."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.kv import MASTER, SALT, SIGNATURE, MakeSample, Sample
from nightfill.errors import BlockCorrupt
from nightfill.kv.block import COVERED_BYTES, HEADER_BYTES, BlockMeta, owner_in, owner_of
from nightfill.kv.cipher import AesGcmSealer
from nightfill.kv.seal import ChecksumSealer, PlainTexts, Sealer

if TYPE_CHECKING:
    from nightfill.kv.buffer import Buffers

REGIONS = {
    "magic": 0,
    "version": 8,
    "seal": 10,
    "kind": 11,
    "layout length": 12,
    "payload length": 16,
    "start": 24,
    "stop": 32,
    "key": 40,
    "signature": 72,
    "key id": 104,
    "nonce": 112,
    "owner": 124,
    "dtype": 132,
    "dimensions": 156,
    "shape": 160,
    "layout": 224,
    "zeros behind the layout": 2000,
    "last covered byte": COVERED_BYTES - 1,
    "first byte of the tag": COVERED_BYTES,
    "last byte of the tag": HEADER_BYTES - 1,
    "first byte of the payload": HEADER_BYTES,
    "middle of the payload": HEADER_BYTES + 2500,
    "last byte of the payload": HEADER_BYTES + 4999,
}


def sealed(sealer: Sealer, sample: Sample) -> memoryview:
    return sealer.seal(sample.key, sample.meta, [memoryview(sample.payload)], salt=SALT)


@pytest.mark.parametrize("nbytes", [0, 1, 15, 16, 17, 4095, 4096, 4097, 100_000, (1 << 20) + 3])
def test_what_was_sealed_opens(sealer: Sealer, sample: MakeSample, nbytes: int) -> None:
    one = sample(1, nbytes)
    block = sealer.open(one.key, sealed(sealer, one), salt=SALT)
    assert block.meta == one.meta
    assert block.payload == one.payload
    assert block.payload.readonly


@pytest.mark.parametrize("nbytes", [0, 1, 15, 16, 17, 4095, 4096, 4097, (1 << 20) + 3])
def test_what_was_sealed_opens_in_place(sealer: Sealer, sample: MakeSample, nbytes: int) -> None:
    one = sample(1, nbytes)
    memory = bytearray(b"\xee" * (nbytes + 64))
    meta = sealer.open_into(one.key, sealed(sealer, one), memoryview(memory)[32 : 32 + nbytes], salt=SALT)
    assert meta == one.meta
    assert memory == b"\xee" * 32 + one.payload + b"\xee" * 32, "not a byte beyond what was offered"


@pytest.mark.parametrize("room", [0, 4999, 5001])
def test_a_payload_of_another_length_is_not_put_in_place(sealer: Sealer, sample: MakeSample, room: int) -> None:
    one = sample(1, 5000)
    memory = bytearray(b"\xee" * room)
    assert sealer.open_into(one.key, sealed(sealer, one), memoryview(memory), salt=SALT) is None
    assert memory == b"\xee" * room


@pytest.mark.parametrize("at", [40, 132, COVERED_BYTES, HEADER_BYTES, HEADER_BYTES + 4999])
def test_a_flipped_bit_is_found_in_place_too(sealer: Sealer, sample: MakeSample, at: int) -> None:
    one = sample(1, 5000)
    stored = sealed(sealer, one)
    stored[at] ^= 1
    with pytest.raises(BlockCorrupt):
        sealer.open_into(one.key, stored, memoryview(bytearray(5000)), salt=SALT)


def test_a_block_bears_the_tag_of_its_owner(sealer: Sealer, sample: MakeSample) -> None:
    assert owner_in(sealed(sealer, sample(1))) == owner_of(SALT)
    assert sealer.current(sealed(sealer, sample(1)))


def test_a_block_of_the_first_format_opens(buffers: Buffers, sample: MakeSample) -> None:
    one, sealer = sample(1, 5000), ChecksumSealer(buffers)
    stored = sealed(sealer, one)
    stored[8:10] = b"\x01\x00"
    stored[124:4080] = one.meta.layout.ljust(3956, b"\0")
    digest = xxhash.xxh3_128(SALT + bytes(stored[:COVERED_BYTES]) + bytes(stored[HEADER_BYTES : HEADER_BYTES + 5000]))
    stored[COVERED_BYTES:HEADER_BYTES] = digest.digest()
    block = sealer.open(one.key, stored, salt=SALT)
    assert (block.meta, bytes(block.payload)) == (one.meta, one.payload)


@given(parts=st.lists(st.binary(max_size=100), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_are_one_payload(sealer: Sealer, sample: MakeSample, parts: list[bytes]) -> None:
    one = sample(1)
    found = sealer.open(
        one.key, sealer.seal(one.key, one.meta, [memoryview(part) for part in parts if part], salt=SALT), salt=SALT
    )
    assert bytes(found.payload) == b"".join(parts)


@pytest.mark.parametrize("at", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_found(sealer: Sealer, sample: MakeSample, at: int, bit: int) -> None:
    one = sample(1, 5000)
    stored = sealed(sealer, one)
    stored[at] ^= 1 << bit
    with pytest.raises(BlockCorrupt):
        sealer.open(one.key, stored, salt=SALT)
    stored[at] ^= 1 << bit
    assert sealer.open(one.key, stored, salt=SALT).payload == one.payload


@given(at=st.integers(0, HEADER_BYTES + 4999), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_is_found(sealer: Sealer, sample: MakeSample, at: int, bit: int) -> None:
    one = sample(1, 5000)
    stored = sealed(sealer, one)
    stored[at] ^= 1 << bit
    with pytest.raises(BlockCorrupt):
        sealer.open(one.key, stored, salt=SALT)


@pytest.mark.parametrize("length", [0, 1, 123, 4080, 4095, 4096, 8192, 8193, 12287])
def test_a_truncated_block_is_found(sealer: Sealer, sample: MakeSample, length: int) -> None:
    one = sample(1, 5000)
    with pytest.raises(BlockCorrupt):
        sealer.open(one.key, sealed(sealer, one)[:length], salt=SALT)


def test_a_lengthened_block_is_found(sealer: Sealer, sample: MakeSample) -> None:
    one = sample(1, 5000)
    with pytest.raises(BlockCorrupt):
        sealer.open(one.key, memoryview(bytes(sealed(sealer, one)) + bytes(4096)), salt=SALT)


def test_a_good_block_under_anothers_key_is_corrupt(sealer: Sealer, sample: MakeSample) -> None:
    with pytest.raises(BlockCorrupt, match="another's"):
        sealer.open(sample(2).key, sealed(sealer, sample(1)), salt=SALT)


def test_another_salt_does_not_open(sealer: Sealer, sample: MakeSample) -> None:
    with pytest.raises(BlockCorrupt):
        sealer.open(sample(1).key, sealed(sealer, sample(1)), salt=b"other")


def test_one_seal_does_not_pass_for_the_other(buffers: Buffers, sample: MakeSample) -> None:
    one, checksum, encrypted = sample(1), ChecksumSealer(buffers), AesGcmSealer(MASTER, buffers)
    with pytest.raises(BlockCorrupt, match="XXH3"):
        encrypted.open(one.key, sealed(checksum, one), salt=SALT)
    with pytest.raises(BlockCorrupt, match="AES_GCM"):
        checksum.open(one.key, sealed(encrypted, one), salt=SALT)


def test_padding_holds_nothing_of_an_earlier_buffer(sealer: Sealer, buffers: Buffers, sample: MakeSample) -> None:
    old = sealed(sealer, sample(2, 8000))
    old[:] = b"\xee" * len(old)
    del old
    assert buffers.idle_bytes, "or the next lines show nothing"
    assert bytes(sealed(sealer, sample(1, 5000))[HEADER_BYTES + 5000 :]) == bytes(8192 - 5000)


def test_the_source_may_change_after_sealing(sealer: Sealer, sample: MakeSample) -> None:
    one, source = sample(1), array("B", b"abcd")
    stored = sealer.seal(one.key, one.meta, [memoryview(source)], salt=SALT)
    source[0] = 0
    assert bytes(sealer.open(one.key, stored, salt=SALT).payload) == b"abcd"


def test_a_snapshot_stays_one(sealer: Sealer, sample: MakeSample) -> None:
    meta = BlockMeta(kind="snapshot", signature=SIGNATURE, start=0, stop=9, layout=b"\0" * 3072)
    stored = sealer.seal(sample(1).key, meta, [], salt=SALT)
    assert sealer.open(sample(1).key, stored, salt=SALT).meta == meta


def test_plain_texts_pass_unchanged() -> None:
    assert PlainTexts().open_text(PlainTexts().seal_text(b"text")) == b"text"
